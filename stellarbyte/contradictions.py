"""Finds the first field of a model that is out of range or contradicts another: the one list of all rejections."""

from collections.abc import Mapping
from typing import Any


def contradiction(fields: Mapping[str, Any]) -> str | None:
    """One sentence about the first thing wrong with a model's fields, or None. It is the one list of all rejections.

    stellarbyte/contradictions.py and stellarbyte_torch/configuration_stellarbyte.py hold this function in the same
    words, and a test keeps them equal: an export must stand alone. `rope_scaling` is a dict without None, or None.
    """

    def say(name: str, complaint: str) -> str:
        return f"{name} {fields[name]} {complaint}"

    # In a list of widths each has a name of its own.
    widths = {"intermediate_size": fields["intermediate_size"]}
    if isinstance(fields["intermediate_size"], list | tuple):
        widths = {f"intermediate_size.{layer}": width for layer, width in enumerate(fields["intermediate_size"])}
    fields = {**fields, **widths}

    # Sizes and numbers that no machine can hold come first, before anything is computed from them.
    few = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    some = ("hidden_size", "head_dim", "num_experts", "num_experts_per_tok", "num_shared_experts")
    many = ("vocab_size", *widths, "moe_intermediate_size")
    sizes = {**dict.fromkeys(some, 2**20), **dict.fromkeys(few, 2**14), **dict.fromkeys(many, 2**24)}
    sizes |= {"max_position_embeddings": 2**30, "sliding_window": 2**31 - 1}
    numbers = ["rms_norm_eps", "initializer_range", "rope_theta", "xpos_scale_base", "layer_scale_init"]
    numbers += ["moe_capacity_factor", "router_aux_loss_coef", "router_z_loss_coef"]
    for name, most in sizes.items():
        if isinstance(fields[name], bool | float | str):
            return say(name, "must be a whole number")
        if fields[name] is not None and fields[name] > most:
            return say(name, f"must be at most {most}: no machine works with more")
    for name in numbers:
        value = fields[name]
        if isinstance(value, bool | str) or (value and not 2.0**-126 <= abs(value) < 2.0**128):
            return say(name, "must be a finite number that float32 holds")
    for name in ("vocab_size", "hidden_size", *widths, "num_hidden_layers", "num_attention_heads"):
        if not fields[name] > 0:
            return say(name, "must be at least 1")
    layers, heads, kv_heads = (fields[name] for name in few)
    if fields["head_dim"] is None:
        return say("hidden_size", f"is not divisible by num_attention_heads {heads}: take a multiple, or set head_dim")
    if not (kv_heads > 0 and heads % kv_heads == 0):
        return say("num_key_value_heads", f"must divide num_attention_heads {heads}")
    if len(widths) != layers and "intermediate_size" not in widths:
        return f"intermediate_size lists {len(widths)} widths, but num_hidden_layers is {layers}: give one a layer"

    # Positions.
    position = fields["position_embedding"]
    if fields["head_dim"] % 2 and position != "none":
        return say("head_dim", "must be even, because rotary positions rotate pairs of channels")
    positive = ("max_position_embeddings", "rms_norm_eps", "initializer_range", "rope_theta", "xpos_scale_base")
    for name in ("head_dim", *positive):
        if not fields[name] > 0:
            return say(name, "must be greater than 0")
    if fields["xpos_learnable"] and position != "xpos":
        return say("xpos_learnable", f"needs position_embedding xpos, not {position}")
    scaling = fields["rope_scaling"]
    if scaling is not None:
        if position == "xpos":
            return (
                f"rope_scaling {scaling['rope_type']} cannot be combined with position_embedding xpos, whose decay "
                "counts unscaled positions: use position_embedding rope, or a larger xpos_scale_base"
            )
        if position == "none":
            return f"rope_scaling {scaling['rope_type']} needs position_embedding rope, not none"
        yarn = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate")
        allowed = {
            "linear": (),
            "dynamic": (),
            "yarn": ("original_max_position_embeddings", *yarn),
            "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
        }[scaling["rope_type"]]
        for name, value in scaling.items():
            if name not in ("rope_type", "factor", *allowed):
                return f"rope_scaling.{name} {value} is no setting of rope_type {scaling['rope_type']}: leave it out"
            if not isinstance(value, str | bool) and not 2.0**-126 <= value < 2.0**128:
                return f"rope_scaling.{name} {value} must be greater than 0 and finite, as float32 holds it"
        if not 1 <= scaling["factor"] <= 2**20:
            return f"rope_scaling.factor {scaling['factor']} must be at least 1 and at most {2**20}"
        if scaling["rope_type"] == "dynamic" and fields["head_dim"] == 2:
            return say("head_dim", "is too small for rope_scaling dynamic, which has the exponent 1 / (head_dim - 2)")
        if scaling["rope_type"] == "llama3":
            for name in allowed:
                if name not in scaling:
                    return f"rope_scaling.{name} is missing: rope_type llama3 needs it"
            low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
            if not low < high:
                return f"rope_scaling.low_freq_factor {low} must be less than high_freq_factor {high}"

    # Attention and residual stream.
    for name in ("sliding_window", "layer_scale_init", "moe_intermediate_size", "moe_capacity_factor"):
        if fields[name] is not None and not fields[name] > 0:
            return say(name, "must be greater than 0, or null")
    for name in ("drop_path_rate", "hidden_dropout", "attention_dropout", "residual_dropout"):
        if not 0 <= fields[name] < 1:
            return say(name, "must be at least 0 and less than 1")
    if fields["layer_scale_init"] is not None and fields["residual"] == "deepnorm":
        return say("layer_scale_init", "contradicts residual deepnorm, which weighs the branches: set one of them")

    # Experts.
    experts = fields["num_experts"]
    counts = ("num_experts", "num_experts_per_tok", "num_shared_experts")
    for name in (*counts, "router_aux_loss_coef", "router_z_loss_coef"):
        if not fields[name] >= 0:
            return say(name, "must be at least 0")
    if experts and not 0 < fields["num_experts_per_tok"] <= experts:
        return say("num_experts_per_tok", f"must be at least 1 and at most num_experts {experts}")
    if experts and "intermediate_size" not in widths:
        return f"intermediate_size lists widths, but num_experts {experts} replaces these networks: give one number"
    for name in ("hidden_size", "moe_intermediate_size") if experts else ():
        if fields[name] % 8:
            return say(name, "must be a multiple of 8 with num_experts: grouped matmuls take rows of 16 bytes")
    for name in ("num_shared_experts", "moe_intermediate_size", "moe_capacity_factor"):
        if fields[name] and not experts:
            return say(name, "needs num_experts, which is 0: set num_experts, or leave it out")

    # All together.
    feed_forward = 3 * sum(widths.values()) * layers // len(widths)
    if experts:
        feed_forward = 3 * layers * fields["moe_intermediate_size"] * (experts + fields["num_shared_experts"])
    attention = 2 * layers * fields["head_dim"] * (heads + kv_heads)
    parameters = fields["hidden_size"] * (fields["vocab_size"] + feed_forward + attention)
    if parameters > 1e14:
        return say("hidden_size", f"makes {parameters:.1e} parameters with the other sizes: 1e+14 are the most")

    # Pruned heads.
    pruned = fields["pruned_heads"]
    if pruned is not None:
        if len(pruned) != layers:
            return f"pruned_heads lists {len(pruned)} layers, but num_hidden_layers is {layers}: give one list a layer"
        for layer, gone in enumerate(pruned):
            if sorted(set(gone)) != list(gone) or not all(0 <= head < heads for head in gone):
                rule = f"must rise, each head from 0 to num_attention_heads - 1 = {heads - 1}"
                return f"pruned_heads.{layer} {list(gone)} {rule}"
            if len(gone) == heads:
                return f"pruned_heads.{layer} {list(gone)} leaves no head: keep at least one in each layer"
    return None


def special_token_mistake(fields: Mapping[str, Any]) -> str | None:
    """One sentence about the first thing wrong with the special tokens, or None; only the JAX side needs all three."""
    ids = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    last = fields["vocab_size"] - 1
    for name, value in ids.items():
        if not 0 <= value <= last:
            return f"{name} {value} must be inside the vocabulary: 0 to vocab_size - 1 = {last}"
    bos, eos, pad = ids.values()
    if pad in (bos, eos):  # one token may both end a document and begin the next, as in GPT-2 and Qwen
        return f"pad_token_id {pad} must differ from bos_token_id {bos} and eos_token_id {eos}"
    return None

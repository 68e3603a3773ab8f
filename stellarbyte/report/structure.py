"""Makes of a model's tensors and config the structure that a report draws, with layers that are alike folded."""

from collections.abc import Mapping
from typing import Any

from stellarbyte.architecture import ByteConfig
from stellarbyte.report.architecture import Architecture, LayerGroup, Weight
from stellarbyte.report.layer_shapes import Tensors, attention_of, feed_forward_of, field
from stellarbyte.report.names import Named
from stellarbyte.report.parameters import PARTS, own_tensors
from stellarbyte.report.subject import Subject

# Fields that the drawing says already, or that change nothing of it.
_NO_SWITCHES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "num_experts", "moe_intermediate_size", "pruned_heads"),
)
# Fields of other families that name a technique.
_FOREIGN = (
    *("hidden_act", "hidden_activation", "activation_function", "rope_theta", "sliding_window", "rms_norm_eps"),
    *("layer_norm_epsilon", "layer_norm_eps", "attention_bias", "attn_logit_softcapping", "final_logit_softcapping"),
    *("num_experts_per_tok", "norm_topk_prob", "partial_rotary_factor", "parallel_residual", "use_parallel_residual"),
    *("parallel_attn", "alibi", "qk_layernorm", "kv_lora_rank", "q_lora_rank", "n_shared_experts"),
)
_PARALLEL = ("phi", "gptj", "cohere", "cohere2")


def structure_of(subject: Subject) -> Architecture:
    """The structure of a model."""
    found, fields = own_tensors(subject), subject.fields
    layers: dict[int, list[tuple[Named, tuple[int, ...]]]] = {}
    outside: list[tuple[Named, tuple[int, ...]]] = []
    for known, shape in found.values():
        (outside if known.layer is None else layers.setdefault(known.layer, [])).append((known, shape))
    norms = {known.inner for tensors in layers.values() for known, _ in tensors if known.part == "norms"}
    vocab, hidden, context = fields.get("vocab_size"), field(fields, "hidden"), field(fields, "context")
    if subject.config is not None:
        context = subject.config.context_length
    return Architecture(
        model_type=subject.model_type,
        vocab_size=vocab if isinstance(vocab, int) else None,
        hidden_size=hidden if isinstance(hidden, int) else None,
        context=context if isinstance(context, int) else None,
        tied=not any(known.part == "head" for known, _ in outside),
        norm=_norm(fields, norms),
        residual=_residual(fields, norms),
        parallel=_parallel(subject.model_type, fields),
        switches=_switches(subject.config, fields),
        groups=_folded(layers, fields),
        outside=tuple(sorted((Weight(w.inner, shape, w.part) for w, shape in outside), key=_place_outside)),
    )


def _folded(layers: Mapping[int, Tensors], fields: Mapping[str, Any]) -> tuple[LayerGroup, ...]:
    alike: dict[Any, list[int]] = {}
    for number in sorted(layers):
        weights = _weights(layers[number])
        attention, feed_forward = attention_of(number, layers[number], fields), feed_forward_of(layers[number], fields)
        alike.setdefault((attention, feed_forward, weights), []).append(number)
    return tuple(
        LayerGroup(tuple(numbers), attention, feed_forward, weights, sum(weight.count for weight in weights))
        for (attention, feed_forward, weights), numbers in alike.items()
    )


def _weights(tensors: Tensors) -> tuple[Weight, ...]:
    """A layer's tensors, the experts' folded. Files list them by their bytes, so they are put into a fixed order."""
    copies: dict[tuple[str, tuple[int, ...], str], int] = {}
    for known, shape in tensors:
        key = known.inner, shape, known.part
        copies[key] = copies.get(key, 0) + 1
    weights = [Weight(*key, copies=count) for key, count in copies.items()]
    return tuple(sorted(weights, key=lambda weight: (_place(weight), weight.name, weight.shape)))


def _place_outside(weight: Weight) -> tuple[int, str]:
    return PARTS.index(weight.part), weight.name


def _place(weight: Weight) -> int:
    """Where in a layer a tensor works: the norm before attention, attention, the norm after it, the network."""
    name, module = weight.name, weight.name.partition(".")[0]
    if weight.part == "norms" and any(word in module for word in ("input_layernorm", "ln_1", "ln1", "norm1")):
        return 0
    if weight.part == "layer_scale":
        return 25 if "attn" in module else 70
    if weight.part == "norms" and "attn" not in module:
        return 30 if "post_attention" in module or "ln_2" in module else 60
    words = ("q_proj", "k_proj", "v_proj", "q_norm", "k_norm", "o_proj", "gate_proj", "up_proj", "down_proj")
    at = next((place for place, word in enumerate(words) if word in name), 0)
    if "attn" in module or "attention" in module:
        return 10 + at
    return {"router": 40, "experts": 50, "shared_experts": 55}.get(weight.part, 45) + (at if at > 5 else 0) // 2


def _norm(fields: Mapping[str, Any], norms: set[str]) -> str | None:
    if not norms:
        return None
    if any(name in fields for name in ("layer_norm_eps", "layer_norm_epsilon", "layernorm_epsilon")):
        return "layer_norm"
    by_bias = any(name.endswith("bias") for name in norms) and "rms_norm_eps" not in fields
    return "layer_norm" if by_bias or fields.get("model_type") == "mpt" else "rms_norm"


def _residual(fields: Mapping[str, Any], norms: set[str]) -> str | None:
    if isinstance(fields.get("residual"), str):
        return str(fields["residual"])
    words = {name.split(".")[-2] for name in norms if "." in name and "attn" not in name.partition(".")[0]}
    if not words:
        return None
    if "post_feedforward_layernorm" in words:
        return "sandwich" if "input_layernorm" in words else "post_norm"
    return "pre_norm"


def _parallel(model_type: str, fields: Mapping[str, Any]) -> bool:
    names = ("parallel_residual", "use_parallel_residual", "parallel_attn")
    said = next((fields[name] for name in names if isinstance(fields.get(name), bool)), None)
    return model_type in (*_PARALLEL, "gpt_neox", "falcon") if said is None else said


def _switches(config: ByteConfig | None, fields: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The fields that are in use: of ours those that are not at their default, or that name a technique."""
    if config is None:
        names = [name for name in _FOREIGN if fields.get(name) not in (None, False)]
        return {name: _scalar(fields[name]) for name in names}
    always = ("position_embedding", "residual", "hidden_act")
    default, found = ByteConfig(), {}
    for name, value in vars(config).items():
        if name in _NO_SWITCHES or value is None or (value == getattr(default, name) and name not in always):
            continue
        experts_alone = "router" in name or name in ("num_experts_per_tok", "norm_topk_prob")
        if experts_alone and not config.num_experts:
            continue
        found[name] = value.rope_type if name == "rope_scaling" else _scalar(value)
    if config.num_experts:
        found["num_experts_per_tok"] = config.num_experts_per_tok
    if config.pruned_heads is not None:
        found["pruned_heads"] = sum(map(len, config.pruned_heads))
    return found


def _scalar(value: Any) -> str | int | float | bool:
    return value if isinstance(value, str | int | float | bool) else str(value)

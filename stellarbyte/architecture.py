"""The architecture of a decoder, as a frozen dataclass that refuses contradictions when it is built."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stellarbyte.errors import UserError

# The largest factor that XPos may put on a score in each compute dtype: a 256th of the largest finite value, which
# leaves room for the score itself. Kept here so that checking a config imports no array library.
_LARGEST_FACTOR = {"float32": 3.4028235e38 / 256, "bfloat16": 3.3895314e38 / 256, "float16": 65504.0 / 256}

# XPos decays pair 0 the fastest: zeta_0 = 0.4 / 1.4 (Sun et al. 2022, arXiv:2212.10554).
XPOS_SMALLEST_ZETA = 0.4 / 1.4


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions stretch beyond the context of training, in Hugging Face's words and formulas.

    linear: every frequency / factor. dynamic: NTK, the base grows with the sequence. yarn: Peng et al. 2023,
    arXiv:2309.00071. llama3: Llama 3.1's interpolation of low frequencies. None leaves a value to its default.
    """

    rope_type: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None


@dataclass(frozen=True)
class ByteConfig:
    """Architecture of a StellarByte decoder, in Hugging Face's words.

    `num_key_value_heads` defaults to `num_attention_heads`, `head_dim` to `hidden_size / num_attention_heads`, and with
    experts `moe_intermediate_size` to `intermediate_size`. `pruned_heads` lists, layer by layer, the query heads that
    are gone.

    Raises:
        UserError: a field is out of range, or two fields contradict each other.
    """

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    position_embedding: Literal["xpos", "rope", "none"] = "xpos"
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    xpos_scale_base: float = 512.0
    xpos_learnable: bool = False
    sliding_window: int | None = None
    attention_bias: bool = False
    qk_norm: bool = False
    residual: Literal["pre_norm", "deepnorm"] = "pre_norm"
    parallel_residual: bool = False
    layer_scale_init: float | None = None
    drop_path_rate: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    num_experts: int = 0
    num_experts_per_tok: int = 2
    num_shared_experts: int = 0
    moe_intermediate_size: int | None = None
    moe_capacity_factor: float | None = None
    norm_topk_prob: bool = True
    router_aux_loss_coef: float = 0.01
    router_z_loss_coef: float = 0.001
    pruned_heads: tuple[tuple[int, ...], ...] | None = None
    bos_token_id: int = 0
    eos_token_id: int = 1
    pad_token_id: int = 2

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.moe_intermediate_size is None and self.num_experts > 0:
            object.__setattr__(self, "moe_intermediate_size", self.intermediate_size)
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.rope_scaling is not None:
            scaling = dataclasses.asdict(self.rope_scaling)
            fields["rope_scaling"] = {name: value for name, value in scaling.items() if value is not None}
        complaint = contradiction(fields) or special_token_mistake(fields)
        if complaint is not None:
            raise UserError(complaint)
        self.check_xpos_range("float32")

    def check_xpos_range(self, dtype: str) -> None:
        """Refuse XPos decays that overflow `dtype` somewhere in the context.

        A score multiplies a query's and a key's factor, each at most zeta_0^(-r / base) with r =
        max_position_embeddings / 2; even where the causal mask hides a pair that meets two such, its score must be
        finite.

        Raises:
            UserError: naming the smallest `xpos_scale_base` that fits.
        """
        if self.position_embedding != "xpos":
            return
        decay = self.max_position_embeddings * math.log(1 / XPOS_SMALLEST_ZETA)
        smallest_base = math.ceil(decay / math.log(_LARGEST_FACTOR[dtype]))
        if self.xpos_scale_base < smallest_base:
            raise UserError(
                f"xpos_scale_base {self.xpos_scale_base} lets XPos leave the range of {dtype} within "
                f"max_position_embeddings {self.max_position_embeddings}: use at least {smallest_base}"
            )

    @property
    def stochastic(self) -> bool:
        """Whether training drops anything at random."""
        return any((self.drop_path_rate, self.hidden_dropout, self.attention_dropout, self.residual_dropout))

    @property
    def context_length(self) -> int:
        """Positions that the model may be used at: dynamic scaling stretches `max_position_embeddings` as it goes."""
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "dynamic":
            return int(self.max_position_embeddings * self.rope_scaling.factor)
        return self.max_position_embeddings


def contradiction(fields: Mapping[str, Any]) -> str | None:
    """The first thing wrong with a model's fields, as one sentence, or None: the one list of all rejections.

    stellarbyte/architecture.py and stellarbyte_torch/configuration_stellarbyte.py hold this function in the same
    words, and a test holds them equal: neither side may import the other. `rope_scaling` comes as a dict without None.
    """

    def say(name: str, complaint: str) -> str:
        return f"{name} {fields[name]} {complaint}"

    # Sizes and numbers that no machine holds, before anything is made of them.
    few = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    some = ("hidden_size", "head_dim", "num_experts", "num_experts_per_tok", "num_shared_experts")
    many = ("vocab_size", "intermediate_size", "moe_intermediate_size")
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
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not fields[name] > 0:
            return say(name, "must be at least 1")
    layers, heads, kv_heads = (fields[name] for name in few)
    if fields["head_dim"] is None:
        return say(
            "hidden_size", f"is not divisible by num_attention_heads {heads}: choose a multiple, or set head_dim"
        )
    if not (kv_heads > 0 and heads % kv_heads == 0):
        return say("num_key_value_heads", f"must divide num_attention_heads {heads}")

    # Positions.
    position = fields["position_embedding"]
    if not fields["head_dim"] > 0:
        return say("head_dim", "must be at least 1")
    if fields["head_dim"] % 2 and position != "none":
        return say("head_dim", "must be even, for rotary positions turn pairs of channels")
    for name in ("max_position_embeddings", "rms_norm_eps", "initializer_range", "rope_theta", "xpos_scale_base"):
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
    if fields["sliding_window"] is not None and not fields["sliding_window"] > 0:
        return say("sliding_window", "must be at least 1, or null for no window")
    for name in ("drop_path_rate", "hidden_dropout", "attention_dropout", "residual_dropout"):
        if not 0 <= fields[name] < 1:
            return say(name, "must be at least 0 and less than 1")
    if fields["layer_scale_init"] is not None:
        if not fields["layer_scale_init"] > 0:
            return say("layer_scale_init", "must be greater than 0, or null for no LayerScale")
        if fields["residual"] == "deepnorm":
            return say(
                "layer_scale_init",
                "contradicts residual deepnorm, which weighs the branches by its own alpha: set one of them",
            )

    # Experts.
    experts = fields["num_experts"]
    if not experts >= 0:
        return say("num_experts", "must be at least 1, or 0 for a dense feed-forward")
    if experts and not 0 < fields["num_experts_per_tok"] <= experts:
        return say("num_experts_per_tok", f"must be at least 1 and at most num_experts {experts}")
    if not fields["num_experts_per_tok"] >= 0:
        return say("num_experts_per_tok", "must be at least 1")
    if not fields["num_shared_experts"] >= 0:
        return say("num_shared_experts", "must be at least 0")
    for name in ("moe_intermediate_size", "moe_capacity_factor"):
        if fields[name] is not None and not fields[name] > 0:
            return say(name, "must be greater than 0, or null")
    if experts:
        for name in ("hidden_size", "moe_intermediate_size"):
            if fields[name] % 8:
                return say(name, "must be a multiple of 8 with num_experts: grouped matmuls take rows of 16 bytes")
    for name in ("num_shared_experts", "moe_intermediate_size", "moe_capacity_factor"):
        if fields[name] and not experts:
            return say(name, "needs num_experts, which is 0: set num_experts, or leave it out")
    for name in ("router_aux_loss_coef", "router_z_loss_coef"):
        if not fields[name] >= 0:
            return say(name, "must be at least 0")

    # All together.
    feed_forward = 3 * fields["intermediate_size"]
    if experts:
        feed_forward = 3 * fields["moe_intermediate_size"] * (experts + fields["num_shared_experts"])
    a_layer = feed_forward + 2 * fields["head_dim"] * (heads + kv_heads)
    parameters = fields["hidden_size"] * (fields["vocab_size"] + layers * a_layer)
    if parameters > 1e14:
        return say("hidden_size", f"makes {parameters:.1e} parameters with the other sizes: 1e+14 are the most")

    # Pruned heads.
    pruned = fields["pruned_heads"]
    if pruned is not None:
        if len(pruned) != layers:
            return f"pruned_heads lists {len(pruned)} layers, but num_hidden_layers is {layers}: give one list a layer"
        for layer, gone in enumerate(pruned):
            if sorted(set(gone)) != list(gone) or not all(0 <= head < heads for head in gone):
                return (
                    f"pruned_heads.{layer} {list(gone)} must rise, each head from 0 to num_attention_heads - 1 = "
                    f"{heads - 1}"
                )
            if len(gone) == heads:
                return f"pruned_heads.{layer} {list(gone)} leaves no head: keep at least one in each layer"
    return None


def special_token_mistake(fields: Mapping[str, Any]) -> str | None:
    """The first thing wrong with the special tokens, which training here needs three of; PyTorch does without."""
    ids = {name: fields[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    last = fields["vocab_size"] - 1
    for name, value in ids.items():
        if not 0 <= value <= last:
            return f"{name} {value} must be inside the vocabulary: 0 to vocab_size - 1 = {last}"
    bos, eos, pad = ids.values()
    if len({bos, eos, pad}) < len(ids):
        return f"pad_token_id {pad} must differ from bos_token_id {bos} and eos_token_id {eos}, as they from each other"
    return None

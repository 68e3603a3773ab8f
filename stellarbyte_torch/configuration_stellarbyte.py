"""The architecture of a StellarByte model as a Hugging Face configuration; exports carry this file."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, Qwen3MoeConfig
from transformers.utils import logging

if TYPE_CHECKING:
    # Transformers tells the code of two folders apart by this file and its imports. Without this line, two exports of
    # the same name with different modeling files would both run the first one's code in a process.
    from .modeling_stellarbyte import ByteForCausalLM  # noqa: F401

logger = logging.get_logger(__name__)

# The largest factor that XPos may put on a score in each dtype: a 256th of the largest finite value, which leaves room
# for the score itself. XPos computes in float32 and then casts, so wider dtypes gain nothing.
_LARGEST_FACTOR = {"float32": 3.4028235e38 / 256, "bfloat16": 3.3895314e38 / 256, "float16": 65504.0 / 256}

# XPos decays pair 0 the fastest: zeta_0 = 0.4 / 1.4 (Sun et al. 2022, arXiv:2212.10554).
XPOS_SMALLEST_ZETA = 0.4 / 1.4

# The settings that rope_scaling may hold, with their types; `contradiction` knows which belong to which rope_type.
_ROPE_SCALING: dict[str, type] = {
    **{"rope_type": str, "factor": float, "original_max_position_embeddings": int, "truncate": bool},
    **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"), float),
    **{"low_freq_factor": float, "high_freq_factor": float},
}


@strict
class ByteConfig(PreTrainedConfig):
    """The architecture of a StellarByte decoder, with the fields, defaults and checks of `stellarbyte_jax.ByteConfig`.

    Rotary settings are flat fields (`rope_theta`, `rope_scaling`), as on the JAX side. Raises ValueError if a field is
    out of range or two contradict each other, StrictDataclassFieldValidationError if a field has the wrong type.

    Args:
        vocab_size (`int`, *optional*, defaults to 32000):
            Number of tokens in the vocabulary; token ids run from 0 to vocab_size - 1.
        hidden_size (`int`, *optional*, defaults to 768):
            Width of the residual stream, in channels.
        intermediate_size (`int` or `list[int]`, *optional*, defaults to 3072):
            Width of the feed-forward network, in channels: one number, or a list with one for each layer. With experts
            it is only the default of moe_intermediate_size.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of layers, each of attention and a feed-forward network.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of query heads in each layer.
        num_key_value_heads (`int`, *optional*):
            Number of key and value heads in each layer; it must divide num_attention_heads, which is its default. A
            smaller number is grouped-query attention, and 1 is multi-query attention.
        head_dim (`int`, *optional*):
            Width of a head, in channels. The default is hidden_size / num_attention_heads.
        hidden_act (`str`, *optional*, defaults to `"silu"`):
            Activation of the gated feed-forward network: silu (SwiGLU), gelu (GeGLU), gelu_pytorch_tanh (GeGLU with the
            tanh approximation of GELU) or relu (ReGLU).
        max_position_embeddings (`int`, *optional*, defaults to 2048):
            Context length: the largest number of tokens in a sequence. Only rope_scaling of type dynamic lets the model
            be used beyond it.
        rms_norm_eps (`float`, *optional*, defaults to 1e-05):
            Constant that RMSNorm adds to the mean of squares before it takes the root.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of freshly drawn weights. The output projections of a layer are drawn smaller, as
            `residual` requires.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the output head uses the matrix of the input embeddings.
        position_embedding (`str`, *optional*, defaults to `"xpos"`):
            How attention knows positions: xpos is rotary embeddings with scores that decay with distance (Sun et al.
            2022, arXiv:2212.10554), rope is plain rotary embeddings (Su et al. 2021, arXiv:2104.09864), and none leaves
            positions to the causal mask.
        rope_theta (`float`, *optional*, defaults to 10000.0):
            Base of the rotary frequencies, for xpos and rope. A larger base makes the slow pairs of channels turn more
            slowly, which suits long contexts.
        rope_scaling (`dict`, *optional*):
            How rotary positions stretch beyond the context of earlier training, with position_embedding rope; `None`
            for no stretching.
        xpos_scale_base (`float`, *optional*, defaults to 512.0):
            Scale of XPos' decay, in tokens: the larger it is, the more slowly scores decay with distance. A value too
            small for max_position_embeddings is refused.
        xpos_learnable (`bool`, *optional*, defaults to `False`):
            Whether training adapts XPos' decay, one number for each pair of channels of a head.
        sliding_window (`int`, *optional*):
            Number of positions that a token sees, itself included, as in Mistral; `None` lets it see all earlier ones.
        attention_bias (`bool`, *optional*, defaults to `False`):
            Whether the four projections of attention have biases.
        qk_norm (`bool`, *optional*, defaults to `False`):
            Whether queries and keys pass an RMSNorm over each head's channels, as in Qwen3.
        residual (`str`, *optional*, defaults to `"pre_norm"`):
            How a branch f joins the residual stream x: pre_norm is x + f(norm(x)), and deepnorm is norm(alpha · x +
            f(x)) with alpha = (2 · num_hidden_layers)^(1/4) (Wang et al. 2022, arXiv:2203.00555).
        parallel_residual (`bool`, *optional*, defaults to `False`):
            Whether attention and the feed-forward network of a layer read the same input and are added at once, instead
            of one after the other.
        layer_scale_init (`float`, *optional*):
            First value of LayerScale's gains, one trained gain for each channel of a branch (Touvron et al. 2021,
            arXiv:2103.17239); `None` for no LayerScale.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Probability with which training drops a whole branch of the last layer for one sequence (DropPath, Huang et
            al. 2016). The probability rises linearly with depth, from 0 in the first layer.
        hidden_dropout (`float`, *optional*, defaults to 0.0):
            Probability with which training drops a channel of the token embeddings.
        attention_dropout (`float`, *optional*, defaults to 0.0):
            Probability with which training drops an attention weight, after the softmax.
        residual_dropout (`float`, *optional*, defaults to 0.0):
            Probability with which training drops a channel of a branch before the branch joins the residual stream.
        num_experts (`int`, *optional*, defaults to 0):
            Number of routed experts in each layer; 0 for a dense feed-forward network.
        num_experts_per_tok (`int`, *optional*, defaults to 2):
            Number of routed experts that work on each token.
        num_shared_experts (`int`, *optional*, defaults to 0):
            Number of experts that work on every token, besides the routed ones.
        moe_intermediate_size (`int`, *optional*):
            Width of an expert, in channels. With experts the default is intermediate_size.
        moe_capacity_factor (`float`, *optional*):
            Largest number of choices that an expert serves in a row in training, as a multiple of an even share; what
            comes later in the row goes without that expert. `None` drops nothing.
        norm_topk_prob (`bool`, *optional*, defaults to `True`):
            Whether the weights of a token's chosen experts are rescaled to a sum of 1.
        router_aux_loss_coef (`float`, *optional*, defaults to 0.01):
            Coefficient of the load-balance loss, which keeps the experts evenly used (Fedus et al. 2021,
            arXiv:2101.03961); 0 for none.
        router_z_loss_coef (`float`, *optional*, defaults to 0.001):
            Coefficient of the router's z-loss, which keeps its logits small (Zoph et al. 2022, arXiv:2202.08906); 0 for
            none.
        pruned_heads (`list[list[int]]`, *optional*):
            Query heads that have been taken out: one ascending list of head numbers for each layer; `None` if none has
            been. `stellarbyte prune` sets it.
        bos_token_id (`int`, *optional*, defaults to 0):
            Id of the token that begins a document.
        eos_token_id (`int` or `list[int]`, *optional*, defaults to 1):
            Id of the token that ends a document; generation stops there.
        pad_token_id (`int`, *optional*, defaults to 2):
            Id of the token that fills up short rows; it is never trained on.
        use_cache (`bool`, *optional*, defaults to `True`):
            Whether the model returns its keys and values, so that generation need not compute them again.
    """

    model_type = "stellarbyte"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 - transformers reads it from the class
    # Our modules have the same names as Qwen3Moe's, so its plans fit.
    base_model_ep_plan = Qwen3MoeConfig.base_model_ep_plan
    base_model_pp_plan = Qwen3MoeConfig.base_model_pp_plan

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int | Sequence[int] = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: Literal["silu", "gelu", "gelu_pytorch_tanh", "relu"] = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: int | float = 1e-5
    initializer_range: int | float = 0.02
    tie_word_embeddings: bool = False
    position_embedding: Literal["xpos", "rope", "none"] = "xpos"
    rope_theta: int | float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    xpos_scale_base: int | float = 512.0
    xpos_learnable: bool = False
    sliding_window: int | None = None
    attention_bias: bool = False
    qk_norm: bool = False
    residual: Literal["pre_norm", "deepnorm"] = "pre_norm"
    parallel_residual: bool = False
    layer_scale_init: int | float | None = None
    drop_path_rate: int | float = 0.0
    hidden_dropout: int | float = 0.0
    attention_dropout: int | float = 0.0
    residual_dropout: int | float = 0.0
    num_experts: int = 0
    num_experts_per_tok: int = 2
    num_shared_experts: int = 0
    moe_intermediate_size: int | None = None
    moe_capacity_factor: int | float | None = None
    norm_topk_prob: bool = True
    router_aux_loss_coef: int | float = 0.01
    router_z_loss_coef: int | float = 0.001
    pruned_heads: Sequence[Sequence[int]] | None = None
    # Hugging Face tools may set any value here later; the JAX side requires three different ids within the vocabulary.
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 2
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0:
            self.head_dim = self.hidden_size // self.num_attention_heads
        sizes = self.intermediate_size
        if not isinstance(sizes, int) and len(sizes) == self.num_hidden_layers and len(set(sizes)) == 1:
            self.intermediate_size = sizes[0]  # so that a model is said in one way alone
        if self.moe_intermediate_size is None and self.num_experts > 0 and isinstance(self.intermediate_size, int):
            self.moe_intermediate_size = self.intermediate_size
        if self.num_experts > 0:  # a dense model's config has no such switch, as in Transformers' own models
            self.output_router_logits = kwargs.pop("output_router_logits", False)
        if self.rope_scaling is not None:
            self.rope_scaling = {name: value for name, value in self.rope_scaling.items() if value is not None} or None
        kwargs.pop("pretraining_tp", None)
        rope_parameters = kwargs.pop("rope_parameters", None)
        if rope_parameters is not None and rope_parameters.get("rope_type") != self.position_embedding:
            self.rope_parameters = rope_parameters
        super().__post_init__(**kwargs)
        self.check_architecture()

    def check_architecture(self) -> None:
        """Raises ValueError, with one sentence, if the fields are out of range or contradict each other."""
        if complaint := _rope_scaling_mistake(self.rope_scaling or {}) or contradiction(vars(self)):
            raise ValueError(complaint)
        self.check_xpos_range(self.dtype)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Saves as Transformers does. Contradictions only cause a warning, because the weights must not be lost."""
        try:
            self.check_architecture()
        except ValueError as error:
            logger.warning(f"config.json is saved with what loading it will refuse: {error}")
        super().save_pretrained(*args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the marks that keep stock models from loading these weights."""
        return {**super().to_dict(), **marks_for_stock_models(vars(self))}

    @property
    def intermediate_sizes(self) -> Sequence[int]:
        """The width of each layer's feed-forward network."""
        sizes = self.intermediate_size
        return (sizes,) * self.num_hidden_layers if isinstance(sizes, int) else sizes

    @property
    def initial_gains(self) -> tuple[float, float]:
        """Factors of initializer_range inside a branch and at its output: DeepNorm's beta, or for a sum of 2L."""
        depth = self.num_hidden_layers
        return ((8 * depth) ** -0.25,) * 2 if self.residual == "deepnorm" else (1.0, (2 * depth) ** -0.5)

    @property
    def is_compressed(self) -> bool:
        """Whether the weights are in compressed-tensors' format, in which the experts are linear layers, each apart."""
        found: Any = getattr(self, "quantization_config", None) or {}
        return (found if isinstance(found, dict) else vars(found)).get("quant_method") == "compressed-tensors"

    def check_xpos_range(self, dtype: Any) -> None:
        """Raises ValueError if XPos's factors overflow `dtype`: a torch.dtype, its name, or None for float32."""
        # A score multiplies two factors of up to zeta_0^(-max_position_embeddings / 2 / base), even if it is masked.
        dtype_name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
        largest = _LARGEST_FACTOR.get(dtype_name, _LARGEST_FACTOR["float32"])
        decay = self.max_position_embeddings * math.log(1 / XPOS_SMALLEST_ZETA)
        smallest_base = math.ceil(decay / math.log(largest))
        if self.position_embedding == "xpos" and self.xpos_scale_base < smallest_base:
            raise ValueError(
                f"xpos_scale_base {self.xpos_scale_base} lets XPos leave the range of {dtype_name} within "
                f"max_position_embeddings {self.max_position_embeddings}: use at least {smallest_base}"
            )

    @property
    def base_model_tp_plan(self) -> dict[str, str]:
        """The way tensor parallelism splits the layers: an entry for each module that this architecture has."""
        sparse = self.num_experts > 0
        plan = {
            name: how
            for name, how in (Qwen3MoeConfig.base_model_tp_plan or {}).items()
            if (self.qk_norm or "_norm" not in name) and (".mlp." not in name or sparse == (".experts" in name))
        }
        if self.num_shared_experts > 0:
            plan |= {f"layers.*.mlp.shared_experts.{name}_proj": "colwise" for name in ("gate", "up")}
            plan["layers.*.mlp.shared_experts.down_proj"] = "rowwise"
        if self.xpos_learnable:  # each device computes only its own heads' share of zeta's gradient
            plan["rotary_emb"] = "replicated_with_grad_allreduce"
        return plan

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """`rope_theta` and `rope_scaling` in Transformers' own form; setting it or a part of it sets those two."""
        if self.position_embedding != "rope":  # code that does not know XPos must not take it for plain RoPE
            raise AttributeError(f"rope_parameters needs position_embedding rope, not {self.position_embedding}")
        parameters = _RopeParameters(rope_theta=self.rope_theta, **(self.rope_scaling or {"rope_type": "default"}))
        if parameters.get("rope_type") == "yarn":
            parameters.setdefault("original_max_position_embeddings", self.max_position_embeddings)
        parameters.config = self
        return parameters

    @rope_parameters.setter
    def rope_parameters(self, parameters: Mapping[str, Any]) -> None:
        scaling = {name: value for name, value in parameters.items() if name != "rope_theta" and value is not None}
        self.rope_theta = parameters.get("rope_theta", self.rope_theta)
        self.rope_scaling = None if not scaling or scaling.get("rope_type") == "default" else scaling

    def standardize_rope_params(self) -> None:
        """Does nothing. Transformers' helpers call it to bring `rope_parameters` into the form that ours has anyway."""

    def convert_rope_params_to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Changes nothing, for the same reason."""
        return kwargs


class _RopeParameters(dict[str, Any]):
    """A config's `rope_parameters`. Users of Transformers change them in place, so changes are passed to the config."""

    config: ByteConfig

    def __setitem__(self, name: str, value: Any) -> None:
        if self.get(name) != value:  # Transformers' validation sets values that are there already
            self.update({name: value})

    def update(self, *changes: Any, **more: Any) -> None:
        super().update(*changes, **more)
        self.config.rope_parameters = self


def _rope_scaling_mistake(scaling: Mapping[str, Any]) -> str | None:
    """A sentence about the first setting that is missing, unknown or of the wrong type; JAX has a dataclass for it."""
    for name in ("rope_type", "factor", *scaling) if scaling else ():
        value, kind = scaling.get(name), _ROPE_SCALING.get(name)
        if kind is None:
            return f"rope_scaling.{name} {value!r} is not a setting: choose among {', '.join(_ROPE_SCALING)}"
        if type(value) is not kind and not (kind is float and type(value) is int):
            return f"rope_scaling.{name} {value!r} must be given, as {kind.__name__}"
    if scaling and scaling["rope_type"] not in ("linear", "dynamic", "yarn", "llama3"):
        return f"rope_scaling.rope_type {scaling['rope_type']!r} must be one of linear, dynamic, yarn, llama3"
    return None


# The values of these fields in every Llama.
_IN_LLAMA = {
    **{"position_embedding": "rope", "sliding_window": None, "qk_norm": False, "residual": "pre_norm"},
    **{"parallel_residual": False, "layer_scale_init": None, "num_experts": 0, "pruned_heads": None},
}


def marks_for_stock_models(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json that make a stock model raise if it is given these weights, instead of computing nonsense.

    The shapes of tensors cannot show it, because XPos and windows change none. All rotary models of Transformers raise
    at a rope_type that it does not know. Llama raises at a sentence in pretraining_tp, which LlamaConfig checks to be a
    number although nothing reads it any more. convert/config.py and stellarbyte_torch/configuration_stellarbyte.py hold
    this function in the same words, and a test keeps them equal.
    """
    position = fields["position_embedding"]
    marks: dict[str, Any] = {}
    if position != "rope":
        marks["rope_parameters"] = {"rope_type": position, "rope_theta": fields["rope_theta"]}
    if unlike := [name for name, value in _IN_LLAMA.items() if fields[name] != value]:
        marks["pretraining_tp"] = f"no Llama, because of {', '.join(unlike)}: load it as model_type stellarbyte"
    return marks


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

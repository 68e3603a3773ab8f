"""The one table of each parameter's names in JAX and in Hugging Face; everything else is derived from it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from stellarbyte.architecture import ByteConfig

Path = tuple[str, ...]
Shape = tuple[int, ...]
Index = tuple[slice | list[int], ...]
When = Callable[[ByteConfig], bool]

# A Hugging Face key with this mark stands for one tensor a layer; JAX has all layers in one array, stacked on axis 0.
_LAYER = "{layer}"


def _always(_: ByteConfig) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """One parameter: its JAX path, its Hugging Face key, and its axes (letters of `axis_sizes`) without the layer axis.

    transpose: whether torch keeps the last two axes as [out, in] where JAX has [in, out].
    keep_float32: whether it stays in float32 in bfloat16 models, as it does on the torch side.
    when: tells whether a model of a config has the parameter.
    """

    jax: str
    hf: str
    axes: tuple[str, ...]
    transpose: bool = False
    keep_float32: bool = False
    when: When = _always

    @property
    def stacked(self) -> bool:
        """Whether JAX holds the parameter of all layers in one array."""
        return _LAYER in self.hf

    @property
    def path(self) -> Path:
        """The keys that lead to the parameter in JAX's nested dict."""
        return tuple(self.jax.split("/"))


# The parameters of a layer: MODULE/kernel in JAX is MODULE.weight in Hugging Face, and so on.


def _matrix(module: str, in_axis: str, out_axis: str, when: When = _always) -> Row:
    return Row(*_layer_names(module, "kernel", "weight"), (in_axis, out_axis), transpose=True, when=when)


def _bias(module: str, axis: str, when: When) -> Row:
    return Row(*_layer_names(module, "bias", "bias"), (axis,), when=when)


def _gain(module: str, axis: str, when: When) -> Row:
    return Row(*_layer_names(module, "scale", "weight"), (axis,), when=when)


def _experts(name: str, in_axis: str, out_axis: str, when: When) -> Row:
    return Row(*_layer_names("mlp/experts", name, name), ("E", in_axis, out_axis), transpose=True, when=when)


def _layer_names(module: str, jax_leaf: str, hf_leaf: str) -> tuple[str, str]:
    return f"model/layers/{module}/{jax_leaf}", f"model.layers.{_LAYER}.{module.replace('/', '.')}.{hf_leaf}"


def _has_bias(config: ByteConfig) -> bool:
    return config.attention_bias


def _has_qk_norm(config: ByteConfig) -> bool:
    return config.qk_norm


def _is_dense(config: ByteConfig) -> bool:
    return config.num_experts == 0


def _is_sparse(config: ByteConfig) -> bool:
    return config.num_experts > 0


def _has_shared_experts(config: ByteConfig) -> bool:
    return config.num_shared_experts > 0


def _is_pre_norm(config: ByteConfig) -> bool:
    return config.residual == "pre_norm"


def _is_deepnorm(config: ByteConfig) -> bool:
    return config.residual == "deepnorm"


def _is_sequential(config: ByteConfig) -> bool:
    return not config.parallel_residual


def has_layer_scale(config: ByteConfig) -> bool:
    """Whether the model has a gain for each channel of its branches."""
    return config.layer_scale_init is not None


# In the order in which transformers lists them. Axes: V vocabulary, D hidden, F feed-forward, Q query heads x head
# size, KV key heads x head size, H head size, H/2 pairs of a head's channels, E experts, X an expert's feed-forward,
# 2X its gate and up, S the shared experts' feed-forward.
TABLE: tuple[Row, ...] = (
    Row("model/embed_tokens/embedding", "model.embed_tokens.weight", ("V", "D")),
    _matrix("self_attn/q_proj", "D", "Q"),
    _bias("self_attn/q_proj", "Q", when=_has_bias),
    _matrix("self_attn/k_proj", "D", "KV"),
    _bias("self_attn/k_proj", "KV", when=_has_bias),
    _matrix("self_attn/v_proj", "D", "KV"),
    _bias("self_attn/v_proj", "KV", when=_has_bias),
    _matrix("self_attn/o_proj", "Q", "D"),
    _bias("self_attn/o_proj", "D", when=_has_bias),
    _gain("self_attn/q_norm", "H", when=_has_qk_norm),
    _gain("self_attn/k_norm", "H", when=_has_qk_norm),
    _matrix("mlp/gate_proj", "D", "F", when=_is_dense),
    _matrix("mlp/up_proj", "D", "F", when=_is_dense),
    _matrix("mlp/down_proj", "F", "D", when=_is_dense),
    _experts("gate_up_proj", "D", "2X", when=_is_sparse),
    _experts("down_proj", "X", "D", when=_is_sparse),
    _matrix("mlp/gate", "D", "E", when=_is_sparse),
    _matrix("mlp/shared_experts/gate_proj", "D", "S", when=_has_shared_experts),
    _matrix("mlp/shared_experts/up_proj", "D", "S", when=_has_shared_experts),
    _matrix("mlp/shared_experts/down_proj", "S", "D", when=_has_shared_experts),
    _gain("input_layernorm", "D", when=_is_pre_norm),
    _gain("post_attention_layernorm", "D", when=_is_sequential),
    _gain("post_feedforward_layernorm", "D", when=_is_deepnorm),
    _gain("self_attn_layer_scale", "D", when=has_layer_scale),
    _gain("mlp_layer_scale", "D", when=has_layer_scale),
    Row("model/norm/scale", "model.norm.weight", ("D",)),
    Row("model/rotary_emb/zeta", "model.rotary_emb.zeta", ("H/2",), keep_float32=True, when=lambda c: c.xpos_learnable),
    Row("lm_head/kernel", "lm_head.weight", ("D", "V"), transpose=True, when=lambda c: not c.tie_word_embeddings),
)


@dataclass(frozen=True)
class HFTensor:
    """One Hugging Face tensor of a model, and where JAX has its values.

    path: the array in JAX. layer: the index into its first axis if it is stacked, else None.
    kept: the index of the tensor's values in that array, which holds more channels if the layer has pruned heads or a
        feed-forward network that is narrower than another's.
    """

    key: str
    shape: Shape
    path: Path
    layer: int | None
    kept: Index
    transpose: bool
    keep_float32: bool


def rows(config: ByteConfig) -> tuple[Row, ...]:
    """The rows of the table that a model of this config has."""
    return tuple(row for row in TABLE if row.when(config))


def axis_sizes(config: ByteConfig) -> dict[str, int]:
    """Axis of the table -> its length in JAX, where pruned heads keep their place and all layers are the widest's."""
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    expert_size = config.moe_intermediate_size or 0
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": max(config.intermediate_sizes),
        "Q": config.num_attention_heads * config.head_dim,
        "KV": config.num_key_value_heads * config.head_dim,
        "H": config.head_dim,
        "H/2": config.head_dim // 2,
        "E": config.num_experts,
        "X": expert_size,
        "2X": 2 * expert_size,
        "S": config.num_shared_experts * expert_size,
    }


def jax_shapes(config: ByteConfig) -> dict[Path, Shape]:
    """JAX path -> shape of every parameter, the stacked ones with their layer axis in front."""
    sizes = axis_sizes(config)
    layers = (config.num_hidden_layers,)
    return {row.path: layers * row.stacked + tuple(sizes[axis] for axis in row.axes) for row in rows(config)}


def hf_tensors(config: ByteConfig) -> list[HFTensor]:
    """Every Hugging Face tensor of a model of this config, in transformers' order: layer after layer."""
    return list(_hf_tensors(config))


def _hf_tensors(config: ByteConfig) -> Iterator[HFTensor]:
    sizes = axis_sizes(config)
    for stacked, neighbours in groupby(rows(config), key=lambda row: row.stacked):
        group = list(neighbours)
        for layer in range(config.num_hidden_layers) if stacked else (None,):
            remaining = _remaining_channels(config, layer)
            for row in group:
                kept: Index = tuple(remaining.get(axis, slice(None)) for axis in row.axes)
                lengths = [len(remaining.get(axis, range(sizes[axis]))) for axis in row.axes]
                if row.transpose:
                    lengths[-2:] = lengths[:-3:-1]
                key = row.hf.format(layer=layer)
                yield HFTensor(key, tuple(lengths), row.path, layer, kept, row.transpose, row.keep_float32)


def _remaining_channels(config: ByteConfig, layer: int | None) -> dict[str, list[int]]:
    """Axis -> the channels that a layer still has of it; an axis that is left out is whole.

    A key/value head is gone if all query heads that read it are gone.
    """
    if layer is None:
        return {}
    width, widest = config.intermediate_sizes[layer], max(config.intermediate_sizes)
    remaining = {"F": list(range(width))} if width < widest else {}
    gone = () if config.pruned_heads is None else config.pruned_heads[layer]
    if not gone:
        return remaining
    assert config.num_key_value_heads is not None
    heads = [head for head in range(config.num_attention_heads) if head not in gone]
    group = config.num_attention_heads // config.num_key_value_heads
    keys = sorted({head // group for head in heads})
    return remaining | {"Q": _channels(heads, config), "KV": _channels(keys, config)}


def _channels(heads: list[int], config: ByteConfig) -> list[int]:
    assert config.head_dim is not None
    return [head * config.head_dim + channel for head in heads for channel in range(config.head_dim)]

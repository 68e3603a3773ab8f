"""The one table of what each parameter is called in JAX and in Hugging Face, from which everything else is derived."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from stellarbyte_jax.config import ByteConfig

Path = tuple[str, ...]
Shape = tuple[int, ...]

# A Hugging Face key with this mark stands for one tensor a layer; JAX has all layers in one array, stacked on axis 0.
_LAYER = "{layer}"


def _always(_: ByteConfig) -> bool:
    return True


@dataclass(frozen=True)
class Row:
    """One parameter: its JAX path, its Hugging Face key, and its axes (letters of `axis_sizes`) without the layer axis.

    `transpose` says that torch keeps the matrix as [out, in] where JAX has [in, out]. `keep_float32` says that
    bfloat16 models keep it in float32 all the same, as the torch side does. `when` says which models have it.
    """

    jax: str
    hf: str
    axes: tuple[str, ...]
    transpose: bool = False
    keep_float32: bool = False
    when: Callable[[ByteConfig], bool] = _always

    @property
    def stacked(self) -> bool:
        """Whether JAX holds the parameter of all layers in one array."""
        return _LAYER in self.hf

    @property
    def path(self) -> Path:
        """The keys that lead to the parameter in the nested dict."""
        return tuple(self.jax.split("/"))


# In the order in which transformers lists them. Axes: V vocabulary, D hidden, F feed-forward, Q query heads x head
# size, KV key heads x head size, H/2 pairs of a head's channels.
TABLE: tuple[Row, ...] = (
    Row("model/embed_tokens/embedding", "model.embed_tokens.weight", ("V", "D")),
    Row(
        "model/layers/self_attn/q_proj/kernel",
        "model.layers.{layer}.self_attn.q_proj.weight",
        ("D", "Q"),
        transpose=True,
    ),
    Row(
        "model/layers/self_attn/k_proj/kernel",
        "model.layers.{layer}.self_attn.k_proj.weight",
        ("D", "KV"),
        transpose=True,
    ),
    Row(
        "model/layers/self_attn/v_proj/kernel",
        "model.layers.{layer}.self_attn.v_proj.weight",
        ("D", "KV"),
        transpose=True,
    ),
    Row(
        "model/layers/self_attn/o_proj/kernel",
        "model.layers.{layer}.self_attn.o_proj.weight",
        ("Q", "D"),
        transpose=True,
    ),
    Row("model/layers/mlp/gate_proj/kernel", "model.layers.{layer}.mlp.gate_proj.weight", ("D", "F"), transpose=True),
    Row("model/layers/mlp/up_proj/kernel", "model.layers.{layer}.mlp.up_proj.weight", ("D", "F"), transpose=True),
    Row("model/layers/mlp/down_proj/kernel", "model.layers.{layer}.mlp.down_proj.weight", ("F", "D"), transpose=True),
    Row("model/layers/input_layernorm/scale", "model.layers.{layer}.input_layernorm.weight", ("D",)),
    Row("model/layers/post_attention_layernorm/scale", "model.layers.{layer}.post_attention_layernorm.weight", ("D",)),
    Row("model/norm/scale", "model.norm.weight", ("D",)),
    Row(
        "model/rotary_emb/zeta",
        "model.rotary_emb.zeta",
        ("H/2",),
        keep_float32=True,
        when=lambda config: config.xpos_learnable,
    ),
    Row(
        "lm_head/kernel",
        "lm_head.weight",
        ("D", "V"),
        transpose=True,
        when=lambda config: not config.tie_word_embeddings,
    ),
)


@dataclass(frozen=True)
class HFTensor:
    """One Hugging Face tensor of a model, and where JAX has its values: at `path`, and there in `layer` if stacked."""

    key: str
    shape: Shape
    path: Path
    layer: int | None
    transpose: bool
    keep_float32: bool


def rows(config: ByteConfig) -> tuple[Row, ...]:
    """The rows of the table that a model of this config has."""
    return tuple(row for row in TABLE if row.when(config))


def axis_sizes(config: ByteConfig) -> dict[str, int]:
    """Length of every axis that the table names."""
    assert config.head_dim is not None
    assert config.num_key_value_heads is not None
    return {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "F": config.intermediate_size,
        "Q": config.num_attention_heads * config.head_dim,
        "KV": config.num_key_value_heads * config.head_dim,
        "H/2": config.head_dim // 2,
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
            for row in group:
                axes = row.axes[::-1] if row.transpose else row.axes
                shape = tuple(sizes[axis] for axis in axes)
                yield HFTensor(row.hf.format(layer=layer), shape, row.path, layer, row.transpose, row.keep_float32)

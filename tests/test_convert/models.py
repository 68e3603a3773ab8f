"""Tiny models that the converter's tests share."""

from typing import Any

import numpy as np

from convert import names, weights
from stellarbyte_jax.config import ByteConfig


def tiny(**fields: Any) -> ByteConfig:
    """A config with small, pairwise different axes, so that a swapped axis shows."""
    shape = {
        "vocab_size": 37,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return ByteConfig(**(shape | fields))


def random_params(config: ByteConfig, seed: int = 0, dtype: str = "float32") -> weights.Params:
    """Parameters of random bits: NaNs with payloads, infinities, denormals and -0.0 among them."""
    generator = np.random.default_rng(seed)
    leaves = {}
    for path, shape in names.jax_shapes(config).items():
        array = np.frombuffer(
            generator.bytes(int(np.prod(shape)) * weights.DTYPES[dtype].itemsize), weights.DTYPES[dtype]
        )
        array = array.copy().reshape(shape)
        special = np.array([-0.0, np.nan, -np.inf, 1e-40], array.dtype)[: array.size]
        array.reshape(-1)[: special.size] = special
        leaves[path] = array
    return without_what_is_pruned(weights.unflatten(leaves), config)


def finite(params: weights.Params) -> weights.Params:
    """The same with -0.0 where a value is nan or infinite, which no folder may hand to a run."""
    return weights.unflatten(
        {path: np.where(np.isfinite(leaf), leaf, np.float32(-0.0)) for path, leaf in weights.flatten(params)}
    )


def sensible_params(config: ByteConfig, seed: int = 1) -> weights.Params:
    """Parameters that let every part of a model have its say: nothing at the value where it would start."""
    generator = np.random.default_rng(seed)

    def values(path: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
        if path[-1] == "scale":
            return generator.uniform(0.4, 1.4, shape)
        if path[-1] == "zeta":
            # Below the bound, at it, inside and above: the clip and its straight-through gradient all count.
            start = (np.arange(0, 1, 1 / shape[0]) + 0.4) / 1.4
            return start + np.resize([-0.05, 0.0, 0.02, 0.5], shape)
        if path[-1] == "bias":
            return generator.normal(0.0, 0.3, shape)
        if path[-1] == "embedding":
            return generator.normal(0.0, 0.5, shape)
        return generator.normal(0.0, 1.2 * shape[-2] ** -0.5, shape)

    leaves = {path: values(path, shape).astype(np.float32) for path, shape in names.jax_shapes(config).items()}
    return without_what_is_pruned(weights.unflatten(leaves), config)


def held(params: weights.Params) -> weights.Params:
    """The same as numpy arrays of its own, whatever they were read from."""
    return weights.unflatten({path: np.array(leaf) for path, leaf in weights.flatten(params)})


def bits(tree: weights.Params) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """What two parameter trees must agree in: shape, dtype and every bit of every leaf."""
    return {
        "/".join(path): (leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes())
        for path, leaf in weights.flatten(tree)
    }


def without_what_is_pruned(params: weights.Params, config: ByteConfig) -> weights.Params:
    """The same with zeros in pruned heads and behind the width of each layer, as pruning leaves it; in place."""
    if not isinstance(config.intermediate_size, int):
        mlp = params["model"]["layers"]["mlp"]
        for layer, width in enumerate(config.intermediate_size):
            mlp["gate_proj"]["kernel"][layer, :, width:] = 0
            mlp["up_proj"]["kernel"][layer, :, width:] = 0
            mlp["down_proj"]["kernel"][layer, width:] = 0
    if config.pruned_heads is None:
        return params
    assert config.head_dim is not None and config.num_key_value_heads is not None
    attention, H = params["model"]["layers"]["self_attn"], config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    for layer, gone in enumerate(config.pruned_heads):
        whole_groups = [k for k in range(config.num_key_value_heads) if {*range(k * group, (k + 1) * group)} <= {*gone}]
        for projection, heads in (("q_proj", gone), ("k_proj", whole_groups), ("v_proj", whole_groups)):
            for head in heads:
                for leaf in attention[projection].values():  # kernel [L, D, out] and bias [L, out]
                    leaf[layer, ..., head * H : (head + 1) * H] = 0
        for head in gone:
            attention["o_proj"]["kernel"][layer, head * H : (head + 1) * H] = 0
    return params

"""Tiny models that the converter's tests share."""

import itertools
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
    return weights.unflatten(leaves)


def bits(tree: weights.Params) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """What two parameter trees must agree in: shape, dtype and every bit of every leaf."""
    return {
        "/".join(path): (leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes())
        for path, leaf in weights.flatten(tree)
    }


# Every switch of the architecture that both sides build, combined.
SWITCHES = {
    "tie_word_embeddings": (False, True),
    "position": ("xpos", "xpos_learnable", "rope"),
    "num_key_value_heads": (4, 2, 1),
}


def grid() -> list[ByteConfig]:
    """All combinations of `SWITCHES` with the activations dealt out in turn, so that each meets every position."""
    acts = itertools.cycle(("silu", "gelu", "gelu_pytorch_tanh", "relu"))
    configs = []
    for tied, position, kv_heads in itertools.product(*SWITCHES.values()):
        configs.append(
            tiny(
                tie_word_embeddings=tied,
                position_embedding=position.removesuffix("_learnable"),
                xpos_learnable=position == "xpos_learnable",
                num_key_value_heads=kv_heads,
                hidden_act=next(acts),
                xpos_scale_base=16.0,
            )
        )
    return configs


def describe(config: ByteConfig) -> str:
    """A test's id."""
    position = "xpos_learnable" if config.xpos_learnable else config.position_embedding
    tied = "tied" if config.tie_word_embeddings else "untied"
    return f"{tied}-{position}-kv{config.num_key_value_heads}-{config.hidden_act}"

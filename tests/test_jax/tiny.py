"""Small models whose pictures are sharp: big initial weights, so that what may not matter would show if it did."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.causal_lm import ByteModel
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.training.state import Params, abstract_model, init_params


def tiny_config(**fields: Any) -> ByteConfig:
    shape = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "xpos_scale_base": 64.0,
    }
    return ByteConfig(**(shape | fields))


@functools.cache
def tiny_params(config: ByteConfig, seed: int = 0) -> Params:
    return jax.jit(init_params, static_argnums=(0, 1))(config, seed)


def tiny_model(config: ByteConfig, dtype: Any = jnp.float32, seed: int = 0) -> ByteModel:
    return nnx.merge(abstract_model(config, Execution(dtype))[0], tiny_params(config, seed))


def random_tokens(config: ByteConfig, *shape: int, seed: int = 0) -> np.ndarray:
    """Token ids, none of them special."""
    return np.random.default_rng(seed).integers(3, config.vocab_size, shape).astype(np.int32)


def segments(*lengths: int, padding: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(position_ids, segment_ids), int32 [1, T], of a row packed with documents of these lengths, then padded."""
    positions = np.concatenate([np.arange(length) for length in (*lengths, padding)])
    ids = np.repeat([*range(1, len(lengths) + 1), 0], [*lengths, padding])
    return positions[None].astype(np.int32), ids[None].astype(np.int32)


def relative_error(actual: Any, expected: Any) -> float:
    """The largest difference over the largest value expected."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())

"""The frequencies of rotary positions, stretched as `rope_scaling` says."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte.architecture import ByteConfig, RopeScaling


def rope_frequencies(config: ByteConfig) -> tuple[np.ndarray, float]:
    """(angle per position of each pair, float32 [H / 2]; factor of cos and sin), by transformers' formulas.

    The frequencies of `dynamic` also depend on the sequence: see `dynamic_frequencies`.
    """
    assert config.head_dim is not None
    scaling = config.rope_scaling
    inv_freq = (1.0 / config.rope_theta ** _exponents(config.head_dim)).astype(np.float32)
    if scaling is None or scaling.rope_type == "dynamic":
        return inv_freq, 1.0
    if scaling.rope_type == "linear":
        return inv_freq / np.float32(scaling.factor), 1.0
    if scaling.rope_type == "llama3":
        return _llama3(inv_freq, scaling), 1.0
    return _yarn(inv_freq, config, scaling), _yarn_attention_factor(scaling)


def dynamic_frequencies(config: ByteConfig, length: jax.Array) -> jax.Array:
    """NTK-aware frequencies, float32 [H / 2]: the base grows once `length` exceeds `max_position_embeddings`."""
    assert config.head_dim is not None and config.rope_scaling is not None
    factor, context, H = config.rope_scaling.factor, config.max_position_embeddings, config.head_dim
    length = jnp.maximum(length, context)
    base = config.rope_theta * ((factor * length / context) - (factor - 1)) ** (H / (H - 2))
    return 1.0 / base ** jnp.asarray(_exponents(H))


def _exponents(head_dim: int) -> np.ndarray:
    return np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)


def _llama3(inv_freq: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Divides the frequencies of long waves by `factor`, keeps those of short waves, and mixes those between."""
    context, low, high = (
        scaling.original_max_position_embeddings,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
    )
    assert context is not None and low is not None and high is not None
    turns = context * inv_freq / (2 * math.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return ((1 - kept) * inv_freq / scaling.factor + kept * inv_freq).astype(np.float32)


def _yarn(inv_freq: np.ndarray, config: ByteConfig, scaling: RopeScaling) -> np.ndarray:
    """Keeps pairs that turn often within the original context and divides those that turn seldom by `factor`."""
    H = config.head_dim
    assert H is not None
    context = scaling.original_max_position_embeddings or config.max_position_embeddings

    def pair_that_turns(times: float) -> float:
        return H * math.log(context / (times * 2 * math.pi)) / (2 * math.log(config.rope_theta))

    low, high = pair_that_turns(scaling.beta_fast or 32), pair_that_turns(scaling.beta_slow or 1)
    if scaling.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, H - 1)
    if low == high:
        high += 0.001  # the ramp would divide by 0
    divided = np.clip((np.arange(H // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (inv_freq / scaling.factor * divided + inv_freq * (1 - divided)).astype(np.float32)


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return magnitude(scaling.mscale) / magnitude(scaling.mscale_all_dim)
    return magnitude(1.0)

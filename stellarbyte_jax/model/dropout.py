"""Dropout and DropPath."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes values with probability `rate` and rescales the others; without a key, x stays as it is."""
    if key is None or rate == 0:
        return x
    kept = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def drop_path(branch_BTD: jax.Array, rate: jax.Array, key: jax.Array) -> jax.Array:
    """Zeroes the whole branch of each row with probability `rate` and rescales the other rows (Huang et al. 2016)."""
    kept_B11 = jax.random.bernoulli(key, 1 - rate, (branch_BTD.shape[0], 1, 1))
    return jnp.where(kept_B11, branch_BTD / (1 - rate), 0).astype(branch_BTD.dtype)

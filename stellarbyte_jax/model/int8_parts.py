"""Numbers as sums of int8 parts, so that XLA multiplies them with int8 numbers without making floats of these.

XLA's CPU backend multiplies int8 with int8 at full speed, but writes int8 numbers out as float32 before it multiplies
them with floats. Three parts of 8 bits hold the 24 bits of float32's fraction, of a row's largest number, and their
products are exact in int32.
"""

import jax
import jax.numpy as jnp

LARGEST = 127
# Sums of more products could leave int32.
MOST_PRODUCTS = 2**31 // LARGEST**2

_PARTS = 3
# A part is finer than the part before it by this factor: half a step of that is LARGEST steps of this.
_FINER = 2 * LARGEST


def in_parts(x_MX: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(int8 parts [..., 3 M, X], float32 steps [..., M, 1]) of numbers [..., M, X].

    The parts of one fineness stand together. What is not finite makes its row's step so.
    """
    x_MX = x_MX.astype(jnp.float32)
    step_M1 = jnp.abs(x_MX).max(axis=-1, keepdims=True) / LARGEST
    rest_MX, parts = x_MX / jnp.where(step_M1 > 0, step_M1, 1.0), []
    for _ in range(_PARTS):
        part_MX = jnp.round(rest_MX)
        parts.append(part_MX.astype(jnp.int8))
        rest_MX = (rest_MX - part_MX) * _FINER
    return jnp.concatenate(parts, axis=-2), step_M1


def joined(sums: jax.Array, step_M1: jax.Array) -> jax.Array:
    """What the sums of products with parts, int32 [..., 3 M, X], stand for: float32 [..., M, X]."""
    coarse_MX, fine_MX, finest_MX = jnp.split(sums.astype(jnp.float32), _PARTS, axis=-2)
    return (coarse_MX + (fine_MX + finest_MX / _FINER) / _FINER) * step_M1

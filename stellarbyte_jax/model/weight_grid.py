"""The grid of a few bits that an export's weights are rounded to, and training on it."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class WeightGrid:
    """A symmetric grid of 2^bits values, with a scale for each group of input channels of an output channel.

    It is the grid of an export's plain rounding, that of compressed-tensors: the codes are the whole numbers from
    -2^(bits - 1) to 2^(bits - 1) - 1, and the largest weight of a group lies half a step beyond the largest code.

    Attributes:
        bits: the number of bits of a code.
        group_size: the number of input channels that share a scale; None for all of them.
    """

    bits: int
    group_size: int | None

    def rounded(self, weights: jax.Array) -> jax.Array:
        """Float32 weights [..., in, out], each rounded to the nearest value of its group's grid.

        The gradient is passed straight through (Bengio et al. 2013, arXiv:1308.3432).
        """
        return _rounded(weights, self)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _rounded(weights: jax.Array, grid: WeightGrid) -> jax.Array:
    *outer, inputs, outputs = weights.shape
    size = grid.group_size or inputs
    assert inputs % size == 0
    grouped = weights.reshape(*outer, inputs // size, size, outputs)
    least, greatest = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
    largest = jnp.abs(grouped).max(axis=-2, keepdims=True)
    scale = quotient(largest, (greatest - least) / 2)
    codes = jnp.clip(jnp.round(quotient(grouped, jnp.where(scale > 0, scale, 1.0))), least, greatest)
    return (codes * scale).reshape(weights.shape)


def quotient(x: jax.Array, y: jax.Array | float) -> jax.Array:
    """x / y, correctly rounded: on the border of two codes a rounding error would be a whole step.

    XLA multiplies by the inverse if the divisor is a constant or broadcast, so this divides by an array like x.
    """
    return x / (y + 0 * x)


@_rounded.defjvp
def _(grid: WeightGrid, primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return _rounded(primals[0], grid), tangents[0]

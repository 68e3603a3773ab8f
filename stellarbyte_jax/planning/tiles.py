"""How many bytes an array takes up in a chip's memory."""

import math
from typing import Any

import jax
import jax.numpy as jnp

# A TPU's vectors: the last axis of an array in HBM is filled up to 128 lanes, the one before to 8 rows.
_LANES, _ROWS = 128, 8


def padded_bytes(shape: tuple[int, ...], dtype: Any, pad: bool = True, *, free: bool = False) -> int:
    """Bytes of an array in HBM; with `pad` in a TPU's tiles of 8 × 128, axes of 1 left out of them.

    `free`: the compiler may store the last two axes the other way round, as it does with parameters.
    """
    sides = [side for side in shape if side != 1]
    size = math.prod(sides) * itemsize(dtype)
    if not pad or len(sides) < 2:
        return size
    rows, lanes = sides[-2:]
    tilings = [_up(rows, _ROWS) * _up(lanes, _LANES), _up(rows, _LANES) * _up(lanes, _ROWS)]
    return size // (rows * lanes) * (min(tilings) if free else tilings[0])


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def itemsize(dtype: Any) -> int:
    """Bytes of one entry; of a random key, which is no number, its own."""
    return 8 if jnp.issubdtype(dtype, jax.dtypes.extended) else jnp.dtype(dtype).itemsize

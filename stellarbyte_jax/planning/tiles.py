"""How many bytes an array takes in a chip's memory."""

import math
from typing import Any

import jax
import jax.numpy as jnp

# A TPU's tile: the last axis of an array in HBM is padded to 128 lanes, the one before it to 8 rows.
_LANES, _ROWS = 128, 8


def padded_bytes(shape: tuple[int, ...], dtype: Any, pad: bool = True, *, free: bool = False) -> int:
    """Bytes of an array in HBM.

    pad: whether it is stored in a TPU's tiles of 8 × 128; axes of length 1 do not count for them.
    free: whether the compiler may swap the last two axes in memory, as it does with parameters.
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
    """Bytes of one entry; 8 for a random key."""
    return 8 if jnp.issubdtype(dtype, jax.dtypes.extended) else jnp.dtype(dtype).itemsize

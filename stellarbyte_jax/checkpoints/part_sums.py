"""What a part of an array on this host adds to the array's checksum; it is computed without JAX."""

import numpy as np

# Elements that are summed at once: they and their factors stay in a core's cache.
_BLOCK = 1 << 15
_FACTORS = 2 * np.arange(_BLOCK, dtype=np.uint32) + 1


def part_sum(part: np.ndarray, first: int = 0) -> int:
    """What a part of an array adds to its sum, modulo 2^32, if the part's elements are those from index `first` on."""
    bits = np.ascontiguousarray(part).reshape(-1).view(f"uint{8 * part.dtype.itemsize}")
    total = 0
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK].astype(np.uint32, copy=False)
        weighted = int(np.einsum("i,i->", block, _FACTORS[: block.size]))
        total += weighted + 2 * (first + start) * int(block.sum(dtype=np.uint32))
    return total % 2**32

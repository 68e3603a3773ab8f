"""Swaps the last two axes of arrays, tile by tile."""

from collections.abc import Iterator

import numpy as np

# Bytes of a line of a core's cache.
_LINE = 64

# What is transposed at once: it stays in a core's cache.
_TILE_ROWS, _TILE_COLUMNS = 256, 512

# What `transposed_pieces` gives at once, which is to be still in the cache when it is used.
_PIECE_BYTES = 1 << 20


def transposed(values: np.ndarray) -> np.ndarray:
    """A copy with the last two axes swapped."""
    bits = _bits(values)
    swapped = np.empty((*bits.shape[:-2], bits.shape[-1], bits.shape[-2]), bits.dtype)
    for matrix in np.ndindex(bits.shape[:-2]):
        _swap(bits[matrix], swapped[matrix])
    return swapped.view(values.dtype)


def transposed_pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    """The values of `transposed` in their order, some of its rows at a time, in memory that the next ones are put into.

    Whoever writes them need not have a second array in memory, and finds them in the cache.
    """
    bits = _bits(values)
    rows, columns = bits.shape[-2:]
    line = _LINE // bits.dtype.itemsize
    width = max(line, _PIECE_BYTES // max(1, rows * bits.dtype.itemsize) // line * line)
    room = np.empty((min(width, columns), rows), bits.dtype)
    for matrix in np.ndindex(bits.shape[:-2]):
        for column in range(0, columns, width):
            part = bits[matrix][:, column : column + width]
            piece = room[: part.shape[1]]
            _swap(part, piece)
            yield piece.view(values.dtype)


def _bits(values: np.ndarray) -> np.ndarray:
    """The same bits as whole numbers, which numpy copies faster than a dtype of another library's."""
    return values.view(f"u{values.dtype.itemsize}")


def _swap(matrix: np.ndarray, into: np.ndarray) -> None:
    """Puts a matrix's columns into the rows of another one.

    A tile is first laid out with a line of the cache between its rows: where the rows of an array are a power of two
    apart, as those of weights often are, the values of one column would all fall on a few lines of the cache.
    """
    apart = np.empty((_TILE_ROWS, _TILE_COLUMNS + _LINE // matrix.dtype.itemsize), matrix.dtype)
    for row in range(0, matrix.shape[0], _TILE_ROWS):
        for column in range(0, matrix.shape[1], _TILE_COLUMNS):
            rows, columns = slice(row, row + _TILE_ROWS), slice(column, column + _TILE_COLUMNS)
            tile = matrix[rows, columns]
            laid = apart[: tile.shape[0], : tile.shape[1]]
            laid[...] = tile
            into[columns, rows] = laid.T

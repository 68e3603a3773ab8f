"""Packs samples of unequal lengths into rows of bounded length."""

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, row_length: int, seed: int = 0) -> np.ndarray:
    """The row of each sample, int64 [samples], so that no row is longer than `row_length`.

    This is best-fit decreasing: the longest samples come first, and each goes into the fullest row that has room. The
    order of equally long samples is drawn from `seed`, so that neighbours in a file do not stay neighbours.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    rows = np.empty(len(lengths), np.int64)
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # by the tokens that still fit
    rooms = 0  # bit n is set where rows_with_room[n] holds a row: the lowest set bit is the fullest row
    count = 0
    for index, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        assert 0 < length <= row_length, length
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row, count = row_length, count, count + 1
        rows[index] = row
        rows_with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows


def samples_of_rows(rows: np.ndarray) -> list[list[int]]:
    """The indices of the samples in each row, from the result of `pack`."""
    borders = np.cumsum(np.bincount(rows))[:-1]
    return [row.tolist() for row in np.split(np.argsort(rows, kind="stable"), borders)] if len(rows) else []

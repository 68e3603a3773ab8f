"""Puts samples of unequal lengths together into rows of at most one length."""

from collections.abc import Sequence

import numpy as np


def pack(lengths: Sequence[int], row_length: int, seed: int) -> list[list[int]]:
    """Rows of indices into `lengths`, each index in one row, no row longer than `row_length`.

    Best-fit decreasing: the longest first, each into the fullest row that still has room. Which of equally long samples
    meet is drawn from `seed`.
    """
    order = np.random.default_rng(seed).permutation(len(lengths))
    order = order[np.argsort(-np.asarray(lengths, np.int64)[order], kind="stable")]
    rows: list[list[int]] = []
    rows_with_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # by the tokens that still fit
    rooms = 0  # bit n is set where rows_with_room[n] holds a row: the lowest set bit is the fullest row
    for index in order.tolist():
        length = int(lengths[index])
        assert 0 < length <= row_length, length
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, row = row_length, len(rows)
            rows.append([])
        rows[row].append(index)
        rows_with_room[room - length].append(row)
        rooms |= 1 << (room - length)
    return rows

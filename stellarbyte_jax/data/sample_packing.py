"""Puts whole samples together into rows of one length."""

import numpy as np

from stellarbyte_jax.data.packing import IGNORED_LABEL, padding_row
from stellarbyte_jax.data.token_shards import TokenShards


class PackedSamples:
    """Rows of a split of chat by random access: each sample whole, in one row, padded at the row's end.

    Which samples share a row depends on their lengths alone: every host and every resume sees the same rows.
    """

    def __init__(self, shards: TokenShards, sequence_length: int) -> None:
        self._shards, self._sequence_length = shards, sequence_length
        self._pad_token_id = shards.manifest.recipe.pad_token_id
        row_of_sample = pack(np.diff(shards.starts), sequence_length)
        self._samples = np.argsort(row_of_sample, kind="stable")  # in the order of their rows
        self._borders = np.append(0, np.cumsum(np.bincount(row_of_sample)))  # row i is samples [i] to [i + 1] of that

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Row `index`, each int32 [T].

        - input_ids: the tokens, then padding;
        - labels: the token after each input, if it is trained on; else -100;
        - segment_ids: 1, 2, … for the samples in the row, 0 for padding;
        - position_ids: counted from 0 in each sample, and 0 for padding.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = padding_row(self._sequence_length, self._pad_token_id)
        start = 0
        for segment, sample in enumerate(self._samples[self._borders[index] : self._borders[index + 1]], 1):
            items = self._shards.read(*self._shards.starts[sample : sample + 2])
            tokens, trained, stop = items["token"], items["trained"], start + len(items)
            row["input_ids"][start:stop] = tokens
            row["labels"][start : stop - 1] = np.where(trained[1:], tokens[1:].astype(np.int32), IGNORED_LABEL)
            row["position_ids"][start:stop] = np.arange(len(items))
            row["segment_ids"][start:stop] = segment
            start = stop
        return row

    def padding_row(self) -> dict[str, np.ndarray]:
        """A row without any sample, to fill up a batch."""
        return padding_row(self._sequence_length, self._pad_token_id)


def pack(lengths: np.ndarray, row_length: int) -> np.ndarray:
    """The row of each sample, int64 [samples], such that no row is longer than `row_length`.

    Best-fit decreasing: the longest first, each into the fullest row that still has room. Which of equally long samples
    meet is drawn, always alike, so that neighbours in a file do not stay neighbours.
    """
    order = np.random.default_rng(0).permutation(len(lengths))
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

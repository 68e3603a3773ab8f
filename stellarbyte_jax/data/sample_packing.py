"""Packs whole samples of chat into rows of one length."""

import numpy as np

from stellarbyte.chat.packing import pack
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.data.packing import padding_row
from stellarbyte_jax.data.token_shards import TokenShards


class PackedSamples:
    """Rows of a split of chat by random access. Each sample is whole in one row; rows are padded at their ends.

    Only the lengths of samples decide which of them share a row, so every host and every resume sees the same rows.
    16 bytes of memory for each sample, and 8 for each row, say where they are.

    tokens: the part of the split that rows are made of, from one sample's start to another's; by default all.
    """

    def __init__(self, shards: TokenShards, sequence_length: int, tokens: range | None = None) -> None:
        self._shards, self._sequence_length = shards, sequence_length
        self._pad_token_id = shards.manifest.recipe.pad_token_id
        tokens = range(shards.tokens) if tokens is None else tokens
        first, last = np.searchsorted(shards.starts, [tokens.start, tokens.stop])
        row_of_sample = pack(np.diff(shards.starts[first : last + 1]), sequence_length)
        self._samples = first + np.argsort(row_of_sample, kind="stable")  # in the order of their rows
        self._borders = np.append(0, np.cumsum(np.bincount(row_of_sample)))  # row i begins at self._samples[borders[i]]

    def __len__(self) -> int:
        return len(self._borders) - 1

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of row `index`, int32 [T] each.

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

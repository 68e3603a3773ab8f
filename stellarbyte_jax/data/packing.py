"""Cuts the stream of a split's documents into rows of one length."""

import numpy as np

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.data.token_shards import TokenShards


class PackedRows:
    """Rows of a split by random access. Row i is tokens [i·T, (i+1)·T) of the split's stream; the last row is padded.

    So every token is an input once, and it is a label once unless it begins a document. A document that runs across
    rows starts anew in each row. Memory does not depend on the number of rows.

    tokens: the part of the stream that rows are made of, from one document's start to another's; by default all.
    """

    def __init__(self, shards: TokenShards, sequence_length: int, tokens: range | None = None) -> None:
        self._shards, self._sequence_length = shards, sequence_length
        self._tokens = range(shards.tokens) if tokens is None else tokens
        self._pad_token_id = shards.manifest.recipe.pad_token_id

    def __len__(self) -> int:
        return -(-len(self._tokens) // self._sequence_length)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of row `index`, int32 [T] each.

        - input_ids: the tokens, then padding;
        - labels: the token after each input, or -100 if that token is of another document or does not exist;
        - segment_ids: 1, 2, … for the documents in the row, 0 for padding;
        - position_ids: counted from 0 in each document of the row, and 0 for padding.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        length, shards = self._sequence_length, self._shards
        start, end = self._tokens.start + index * length, self._tokens.stop
        stop = min(start + length, end)
        count = stop - start
        tokens = shards.read(start, min(stop + 1, end)).astype(np.int32)

        # Borders are where a document starts inside the row or right after it; the split's end is a border, too.
        borders = shards.starts_within(start, stop) - start  # from 1 to count

        input_ids = np.full(length, self._pad_token_id, np.int32)
        input_ids[:count] = tokens[:count]
        labels = np.full(length, IGNORED_LABEL, np.int32)
        labels[: len(tokens) - 1] = tokens[1:]
        labels[borders - 1] = IGNORED_LABEL

        begins = np.zeros(length + 1, np.int32)
        begins[borders] = 1
        segment_ids = np.cumsum(begins[:length], dtype=np.int32) + 1
        steps = np.arange(length, dtype=np.int32)
        position_ids = steps - np.maximum.accumulate(np.where(begins[:length] == 1, steps, 0), dtype=np.int32)
        segment_ids[count:] = 0
        position_ids[count:] = 0
        return {
            "input_ids": input_ids,
            "labels": labels,
            "position_ids": position_ids,
            "segment_ids": segment_ids.astype(np.int32),
        }

    def padding_row(self) -> dict[str, np.ndarray]:
        """A row without any document, to fill up a batch."""
        return padding_row(self._sequence_length, self._pad_token_id)


def cut(rows: dict[str, np.ndarray], pieces: int) -> dict[str, np.ndarray]:
    """Rows [N, T] as shorter ones [N · pieces, T / pieces], which are those that PackedRows makes of that length."""
    if pieces == 1:
        return rows
    short = {name: values.reshape(len(values) * pieces, -1) for name, values in rows.items()}
    segments, positions = short["segment_ids"], short["position_ids"]
    # The document in which a piece begins starts anew there.
    continued = segments == segments[:, :1]
    short["position_ids"] = np.where(continued, positions - positions[:, :1], positions)
    short["segment_ids"] = np.where(segments == 0, 0, segments - segments[:, :1] + 1)
    return short


def padding_row(length: int, pad_token_id: int) -> dict[str, np.ndarray]:
    """The arrays of a row that holds only padding, int32 [T] each."""
    empty = np.zeros(length, np.int32)
    return {
        "input_ids": np.full_like(empty, pad_token_id),
        "labels": np.full_like(empty, IGNORED_LABEL),
        "position_ids": empty,
        "segment_ids": empty.copy(),
    }

"""Serves batches of packed rows, each a pure function of the seed and the step, however many hosts share it."""

from collections.abc import Generator

import grain
import numpy as np

from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.packing import PackedRows
from stellarbyte_jax.data.sample_packing import PackedSamples
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.errors import UserError

Batch = dict[str, np.ndarray]

# grain's own "for ever" is sys.maxsize rows, which its batching rounds up to more than len() may return.
_ROWS_FOREVER = 1 << 50

_THREADS, _BATCHES_AHEAD = 2, 8


class TrainLoader:
    """Training batches of one host: rows are shuffled anew each epoch, and a batch may run from one into the next.

    Step s of the whole job is rows [s·B, (s+1)·B) of that order, B = batch_size; of these, host p of P reads the p-th
    contiguous part alone. Each row comes exactly once an epoch.

    Raises:
        UserError: the split holds no rows or was prepared for another config, or the hosts cannot share a batch evenly.
    """

    def __init__(
        self, data: DataConfig, batch_size: int, seed: int, process_index: int = 0, process_count: int = 1
    ) -> None:
        self._rows = _packed_rows(data, "train")
        local_size = _local_size(batch_size, process_index, process_count)
        epochs = max(1, _ROWS_FOREVER // len(self._rows))
        shuffled = grain.MapDataset.source(self._rows).seed(seed).shuffle().repeat(epochs)
        batches = shuffled.batch(local_size, drop_remainder=True, batch_fn=_stack)
        self._batches = batches[process_index::process_count]

    def __len__(self) -> int:
        """Rows in an epoch, over all hosts."""
        return len(self._rows)

    def batch(self, step: int) -> Batch:
        """This host's part of the batch of a step: int32 [B / process_count, T] each, as in PackedRows."""
        return self._batches[step]

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Batches from `start_step` on, without end, read ahead by background threads that closing it stops."""
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
        iterator = iter(self._batches[start_step:].to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()


def validation_batches(
    data: DataConfig,
    batch_size: int,
    max_batches: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """This host's part of the validation split, in order, once; the last batch is filled up with rows of padding.

    Raises:
        UserError: the split holds no rows or was prepared for another config, or the hosts cannot share a batch evenly.
    """
    rows = _packed_rows(data, "validation")
    local_size = _local_size(batch_size, process_index, process_count)
    count = -(-len(rows) // batch_size)
    for step in range(count if max_batches is None else min(count, max_batches)):
        first = step * batch_size + process_index * local_size
        yield _stack([rows[i] if i < len(rows) else rows.padding_row() for i in range(first, first + local_size)])


def _packed_rows(data: DataConfig, split: str) -> PackedRows | PackedSamples:
    shards = TokenShards.open(data.shards, split)
    shards.manifest.recipe.check_serves(data)
    rows = (PackedRows if data.kind == "text" else PackedSamples)(shards, data.sequence_length)
    if len(rows) == 0:
        fix = "raise data.validation_fraction, or add documents" if split == "validation" else "add documents"
        raise UserError(f"the {split} split of {data.shards} holds no text: {fix}, and prepare it again")
    return rows


def _local_size(batch_size: int, process_index: int, process_count: int) -> int:
    assert 0 <= process_index < process_count, (process_index, process_count)
    if batch_size % process_count:
        raise UserError(f"batch_size {batch_size} is not divisible by the {process_count} processes that share it")
    return batch_size // process_count


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

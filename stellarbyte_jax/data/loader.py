"""Serves batches of packed rows; each is a pure function of the seed and the step, however many hosts share it."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import grain
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.packing import PackedRows
from stellarbyte_jax.data.sample_packing import PackedSamples
from stellarbyte_jax.data.token_shards import TokenShards

Batch = dict[str, np.ndarray]

# By default grain repeats until sys.maxsize rows, which its batching rounds up to more than len() may return.
_ROWS_FOREVER = 1 << 50

_THREADS, _BATCHES_AHEAD = 2, 8


class TrainLoader:
    """Training batches. Rows are shuffled anew in each epoch, and a batch may hold rows of two epochs.

    Step s of the whole job takes rows [s·B, (s+1)·B) in this order, where B = batch_size. A host reads only its
    `local_rows` of these, such as BatchPlacement.rows; by default it reads all. Each row comes exactly once an epoch.
    `manifest` is the manifest of the folder data.shards.

    Raises:
        UserError: the split holds no rows or was prepared for another config.
    """

    def __init__(
        self,
        data: DataConfig,
        manifest: Manifest,
        batch_size: int,
        seed: int,
        local_rows: Sequence[int] | None = None,
    ) -> None:
        self._rows = _packed_rows(data, manifest, "train")
        epochs = max(1, _ROWS_FOREVER // len(self._rows))
        shuffled = grain.MapDataset.source(self._rows).seed(seed).shuffle().repeat(epochs)
        self._batches = grain.MapDataset.source(_Batches(shuffled, batch_size, _checked(local_rows, batch_size)))
        self._order = grain.MapDataset.range(len(self._rows)).seed(seed).shuffle().repeat(epochs)

    def __len__(self) -> int:
        """The number of rows in an epoch, over all hosts."""
        return len(self._rows)

    def batch(self, step: int) -> Batch:
        """This host's part of the batch of a step: the arrays of PackedRows, int32 [len(local_rows), T] each."""
        return self._batches[step]

    def samples(self, first_row: int, count: int) -> dict[int, list[int]]:
        """Which samples the job's rows from `first_row` on are: epoch -> the numbers of their rows in the split."""
        samples: dict[int, list[int]] = {}
        for row in range(first_row, first_row + count):
            samples.setdefault(row // len(self), []).append(int(self._order[row]))
        return samples

    def batches(self, start_step: int = 0) -> Generator[Batch, None, None]:
        """Endless batches from `start_step` on. Background threads read ahead until the generator is closed."""
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
        iterator = iter(self._batches[start_step:].to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()


class _Batches:
    """Batches by their step, read from a long list of rows."""

    def __init__(self, rows: Sequence[Batch], batch_size: int, local_rows: Sequence[int]) -> None:
        self._rows, self._batch_size, self._local_rows = rows, batch_size, local_rows

    def __len__(self) -> int:
        return len(self._rows) // self._batch_size

    def __getitem__(self, step: int) -> Batch:
        first = step * self._batch_size
        return _stack([self._rows[first + row] for row in self._local_rows])


def validation_batches(
    data: DataConfig,
    manifest: Manifest,
    batch_size: int,
    max_batches: int | None = None,
    local_rows: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[Batch, None, None]:
    """The `local_rows` (by default all) of each batch of the validation split, in order, once.

    The last batch is filled up with rows of padding. `manifest` is the manifest of the folder data.shards. `progress`
    is called with (batches done, number of batches); a batch is done when the next one is asked for.

    Raises:
        UserError: the split holds no rows or was prepared for another config.
    """
    rows = _packed_rows(data, manifest, "validation")
    local_rows = _checked(local_rows, batch_size)
    count = -(-len(rows) // batch_size)
    count = count if max_batches is None else min(count, max_batches)
    for step in range(count):
        numbers = [step * batch_size + row for row in local_rows]
        yield _stack([rows[i] if i < len(rows) else rows.padding_row() for i in numbers])
        if progress is not None:
            progress(step + 1, count)


def _packed_rows(data: DataConfig, manifest: Manifest, split: str) -> PackedRows | PackedSamples:
    manifest.recipe.check_serves(data)
    shards = TokenShards(Path(data.shards), split, manifest)
    rows = (PackedRows if data.kind == "text" else PackedSamples)(shards, data.sequence_length)
    if len(rows) == 0:
        fix = "raise data.validation_fraction, or add documents" if split == "validation" else "add documents"
        raise UserError(f"the {split} split of {data.shards} holds no text: {fix}, and prepare it again")
    return rows


def _checked(local_rows: Sequence[int] | None, batch_size: int) -> Sequence[int]:
    if local_rows is None:
        return range(batch_size)
    assert local_rows, "a host without rows"
    assert min(local_rows) >= 0 and max(local_rows) < batch_size, (local_rows, batch_size)
    return local_rows


def _stack(rows: list[Batch]) -> Batch:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

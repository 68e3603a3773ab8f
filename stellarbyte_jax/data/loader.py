"""Serves batches of packed rows; each is a pure function of the seed and its place, however many hosts share it."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple

import grain
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.places import is_remote, place
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.ledger import facts
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.mixture import Segment
from stellarbyte_jax.data.packing import PackedRows, cut
from stellarbyte_jax.data.sample_order import SampleId, SampleOrder
from stellarbyte_jax.data.sample_packing import PackedSamples
from stellarbyte_jax.data.token_shards import TokenShards, shard_cache

_THREADS, _BATCHES_AHEAD = 2, 8

# grain's iterators end where len() says; no run comes near.
_STEPS_FOREVER = 1 << 40


class Batch(dict[str, np.ndarray]):
    """Rows of a batch: arrays by name, [rows, T] each. `samples` says which they are, by their number in the order.

    BatchPlacement.put makes global arrays of it; JAX does not take it for a dict.
    """

    samples: Mapping[int, SampleId] = {}


class Take(NamedTuple):
    """What a host reads for one step.

    first: the place of the step's first row among all rows of all epochs, in their order.
    rows: the numbers of this host's rows within the step, such as BatchPlacement.rows.
    pieces: the number of shorter rows that each row is cut into.
    """

    first: int
    rows: Sequence[int]
    pieces: int = 1


class TrainLoader:
    """Training batches. Rows are shuffled anew in each epoch, and a batch may hold rows of two epochs.

    Each row comes exactly once an epoch. Which of them a step takes is decided by a function from the number of steps
    done to a Take. `manifest` is the manifest of the folder data.shards.

    If the sources have weights, each is a stream of rows and epochs of its own, and `order` mixes them.

    Raises:
        UserError: the split holds no rows or was prepared for another config; or the sources have weights, and the
            shards do not say where each begins, or one of them has no rows.
    """

    def __init__(self, data: DataConfig, manifest: Manifest, seed: int) -> None:
        self._data, self._seed = data, seed
        segments = () if data.weights is None else (Segment(0, data.weights),)
        self._streams = _source_rows(data, manifest) if segments else [_packed_rows(data, manifest, "train")]
        self.order = SampleOrder([len(stream) for stream in self._streams], seed, segments)

    def mixed_by(self, segments: Sequence[Segment]) -> "TrainLoader":
        """This loader, but with weights that change; for data that are not mixed, no segments."""
        loader = copy(self)
        loader.order = SampleOrder(self.order.rows, self._seed, segments)
        return loader

    def __len__(self) -> int:
        """The number of rows in all sources, over all hosts."""
        return sum(self.order.rows)

    def facts(self, data_sha256: str, part: int = 0) -> dict[str, Any] | None:
        """What a ledger says of the data, which `data_sha256` identifies; None if data.ledger is false.

        part: a number that grows where the run goes on with other data.
        """
        if not self._data.ledger:
            return None
        mixed = self.order.mixture is not None
        names = [source.path for source in self._data.sources] if mixed else [self._data.shards]
        return facts(names, self.order, data_sha256, part)

    def repeats(self, samples: int) -> Iterator[str]:
        """How often the first `samples` rows of the order read each source: a line for each that has a weight.

        Without weights it is one line, if rows come more than once.
        """
        epochs = self.order.epochs(samples)
        if self.order.mixture is None or samples == 0:
            if epochs[0] > 1:
                yield f"{len(self):,} rows, {epochs[0]:.1f} epochs"
            return
        for source, rows, often in zip(self._data.sources, self.order.rows, epochs, strict=True):
            yield f"{source.path}: {rows:,} rows, {often * rows / samples:.1%} of tokens, {often:.1f} epochs"

    def batch(self, take: Take) -> Batch:
        """This host's part of a step's batch: the arrays of PackedRows, int32 [rows · pieces, T / pieces] each."""
        samples = {take.first + row: self.order[take.first + row] for row in take.rows}
        rows = _stack([self._streams[source][row] for source, _, row in samples.values()])
        batch = Batch(cut(rows, take.pieces))
        batch.samples = samples
        return batch

    def samples(self, first_row: int, count: int) -> dict[str, list[int]]:
        """Which samples the job's rows from `first_row` on are: epoch -> the numbers of their rows in the split.

        Of sources with weights it is "SOURCE EPOCH" -> the numbers of their rows in the source.
        """
        samples: dict[str, list[int]] = {}
        for number in range(first_row, first_row + count):
            source, epoch, row = self.order[number]
            name = f"{epoch}" if self.order.mixture is None else f"{self._data.sources[source].path} {epoch}"
            samples.setdefault(name, []).append(row)
        return samples

    def batches(self, takes: Callable[[int], Take], start_step: int = 0) -> Generator[Batch, None, None]:
        """Endless batches from `start_step` on. Background threads read ahead until the generator is closed."""
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
        steps = grain.MapDataset.source(_Batches(self, takes))
        iterator = iter(steps[start_step:].to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()


class _Batches:
    """Batches by the number of steps before them."""

    def __init__(self, loader: TrainLoader, takes: Callable[[int], Take]) -> None:
        self._loader, self._takes = loader, takes

    def __len__(self) -> int:
        return _STEPS_FOREVER

    def __getitem__(self, step: int) -> Batch:
        return self._loader.batch(self._takes(step))


def validation_batches(
    data: DataConfig,
    manifest: Manifest,
    batch_size: int,
    max_batches: int | None = None,
    local_rows: Sequence[int] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
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


def _source_rows(data: DataConfig, manifest: Manifest) -> list[PackedRows | PackedSamples]:
    """The rows of each source in the training split, for sources that are mixed by weights.

    Raises:
        UserError: as TrainLoader.
    """
    manifest.recipe.check_serves(data)
    if manifest.source_tokens is None:
        raise UserError(
            f"data.sources have weights, but data.shards {data.shards} was prepared by an earlier version, which did "
            "not note where each source begins: prepare into another folder, or leave the weights out"
        )
    tokens = manifest.source_tokens["train"]
    if len(tokens) != len(data.sources):
        raise UserError(
            f"data.sources are {len(data.sources)} with weights, but data.shards {data.shards} was prepared from "
            f"{len(tokens)}: name these, or prepare into another folder"
        )
    shards = _shards(data, "train", manifest)
    streams, begin = [], 0
    for index, (source, count) in enumerate(zip(data.sources, tokens, strict=True)):
        rows = _ROWS[data.kind](shards, data.sequence_length, range(begin, begin + count))
        if len(rows) == 0:
            raise UserError(
                f"data.sources.{index}.weight is {source.weight}, but {source.path} has no text in the training split: "
                "leave the source out, and prepare again"
            )
        streams.append(rows)
        begin += count
    return streams


_ROWS: dict[str, type[PackedRows] | type[PackedSamples]] = {"text": PackedRows, "chat": PackedSamples}


def _shards(data: DataConfig, split: str, manifest: Manifest) -> TokenShards:
    cache = shard_cache(data, manifest) if is_remote(data.shards) else None
    return TokenShards(place(data.shards), split, manifest, cache)


def _packed_rows(data: DataConfig, manifest: Manifest, split: str) -> PackedRows | PackedSamples:
    manifest.recipe.check_serves(data)
    shards = _shards(data, split, manifest)
    rows = _ROWS[data.kind](shards, data.sequence_length)
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


def _stack(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

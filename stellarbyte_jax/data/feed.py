"""Feeds a run from a known place in its data on: which rows a step takes, and where they lie."""

from collections.abc import Callable, Generator, Iterator, Mapping

import jax
import numpy as np

from stellarbyte_jax.batch_stages import Stage, rows_between, stage_of
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.data.batch_placement import BatchPlacement
from stellarbyte_jax.data.loader import Batch, Take, TrainLoader, validation_batches
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.sharding import Layout


class Feed:
    """The rows of each step: `rows` rows of the data were taken when `step` steps were done; each step takes the next.

    So every row comes once an epoch, whatever the batch sizes are and were.
    """

    def __init__(self, config: RunConfig, loader: TrainLoader, layout: Layout, step: int, rows: int) -> None:
        self.stages, self._length = config.stages, config.data.sequence_length
        self._config, self._whole = config, BatchPlacement(layout, config.training.batch_size, self._length)
        self._loader, self._step, self._rows = loader, step, rows
        self._takes = {stage: BatchPlacement(layout, stage.batch_size, self._length).rows for stage in self.stages}
        self._placements = {
            stage: BatchPlacement(layout, stage.batch_size * self._pieces(stage), stage.sequence_length)
            for stage in self.stages
        }

    def take(self, step: int, left_out: int = 0) -> Take:
        """What this process reads for the next step when `step` steps are done and so many rows were left out."""
        stage = self.stage(step)
        return Take(self.rows(step) + left_out, self._takes[stage], self._pieces(stage))

    def batches(self, step: int, left_out: int = 0) -> Generator[Batch, None, None]:
        """Endless batches from `step` on, as TrainLoader.batches, if so many rows were left out."""
        return self._loader.batches(lambda at: self.take(at, left_out), step)

    def stage(self, step: int) -> Stage:
        """The stage of the next step when `step` steps are done."""
        return stage_of(self.stages, step)

    def rows(self, step: int) -> int:
        """The number of rows that steps have taken when `step` steps are done, for a checkpoint."""
        return self._rows + rows_between(self.stages, self._step, step)

    def put(self, step: int, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global arrays of the batch that this process has read its part of, after `step` steps."""
        return self._placements[self.stage(step)].put(batch)

    def validation(self, manifest: Manifest, progress: Callable[[int, int], None]) -> Iterator[dict[str, jax.Array]]:
        """The global arrays of the batches of a validation, of whole rows; progress: see validation_batches."""
        size, most = self._config.training.batch_size, self._config.training.eval_batches
        for batch in validation_batches(self._config.data, manifest, size, most, self._whole.rows, progress):
            yield self._whole.put(batch)

    def _pieces(self, stage: Stage) -> int:
        return self._length // stage.sequence_length

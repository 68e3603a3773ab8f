"""Token shards by the config that they were made by, read as a run reads them."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data import loader
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.token_shards import TokenShards


def manifest_of(data: DataConfig) -> Manifest:
    return Manifest.load(Path(data.shards))


def open_shards(data: DataConfig, split: str) -> TokenShards:
    return TokenShards(Path(data.shards), split, manifest_of(data))


class SteadyLoader:
    """The batches of a run whose batches have one size, by the number of steps before them."""

    def __init__(self, data: DataConfig, batch_size: int, seed: int, local_rows: Sequence[int] | None) -> None:
        self._loader = loader.TrainLoader(data, manifest_of(data), seed)
        self._batch_size, self._rows = batch_size, range(batch_size) if local_rows is None else local_rows

        self.order, self.repeats = self._loader.order, self._loader.repeats

    def __len__(self) -> int:
        return len(self._loader)

    def batch(self, step: int) -> loader.Batch:
        return self._loader.batch(self._take(step))

    def batches(self, start_step: int = 0) -> Generator[loader.Batch, None, None]:
        return self._loader.batches(self._take, start_step)

    def _take(self, step: int) -> loader.Take:
        return loader.Take(step * self._batch_size, self._rows)


def train_loader(data: DataConfig, batch_size: int, seed: int, local_rows: Sequence[int] | None = None) -> SteadyLoader:
    return SteadyLoader(data, batch_size, seed, local_rows)


def validation_batches(
    data: DataConfig, batch_size: int, *args: Any, **options: Any
) -> Generator[dict[str, np.ndarray], None, None]:
    return loader.validation_batches(data, manifest_of(data), batch_size, *args, **options)

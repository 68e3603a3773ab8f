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


def train_loader(
    data: DataConfig, batch_size: int, seed: int, local_rows: Sequence[int] | None = None
) -> loader.TrainLoader:
    return loader.TrainLoader(data, manifest_of(data), batch_size, seed, local_rows)


def validation_batches(
    data: DataConfig, batch_size: int, *args: Any, **options: Any
) -> Generator[dict[str, np.ndarray], None, None]:
    return loader.validation_batches(data, manifest_of(data), batch_size, *args, **options)

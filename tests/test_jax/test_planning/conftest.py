"""A run that can be planned: no data need be there."""

from collections.abc import Callable
from typing import Any

import pytest

from stellarbyte_jax.config import DataConfig, MeshConfig, RunConfig, SourceConfig, TrainingConfig
from test_jax.tiny import tiny_config

PlannedRun = Callable[..., RunConfig]


def make_run(length: int = 128, training: Any = None, mesh: Any = None, **model: Any) -> RunConfig:
    """A config of fields of the model, `training`, `mesh` and the row's length."""
    data = DataConfig(sources=(SourceConfig("text"),), tokenizer="t", shards="s", sequence_length=length)
    shape = {"max_position_embeddings": 256, "xpos_scale_base": 256.0}
    return RunConfig(
        output_dir="run",
        model=tiny_config(**(shape | model)),
        data=data,
        training=TrainingConfig(**({"max_steps": 100, "batch_size": 8} | (training or {}))),
        mesh=MeshConfig(**(mesh or {})),
    )


@pytest.fixture
def planned_run() -> PlannedRun:
    """Makes such configs."""
    return make_run

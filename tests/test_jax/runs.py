"""What tests of whole runs look at, and how they crash them."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from stellarbyte_jax.checkpoints.checkpoint import load_params
from stellarbyte_jax.config import ByteConfig, DataConfig, OptimizerConfig, RunConfig, SourceConfig, TrainingConfig
from stellarbyte_jax.training.pretrain import pretrain


def records(run_dir: str | Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the figures that the clock and the compiler make."""
    timed = re.compile(r"(validation_)?(\w+_per_second|\w+_seconds|host_bytes|compile_cache)")
    lines = (Path(run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if not timed.fullmatch(k)} for line in lines]


def losses(run_dir: str | Path) -> list[float]:
    return [record["loss"] for record in records(run_dir) if "loss" in record]


def bits(run_dir: str | Path) -> dict[str, bytes]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(load_params(run_dir)[0])
    return {jax.tree_util.keystr(path): leaf.tobytes() for path, leaf in leaves}


def check_law_6(config: RunConfig, interrupted: RunConfig, disturb: Callable) -> None:
    """Trains both, the second with a signal on the way; they are the same run."""
    assert pretrain(config)
    disturb(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(interrupted)
    assert pretrain(interrupted)
    assert records(config.output_dir) == records(interrupted.output_dir)
    assert bits(config.output_dir) == bits(interrupted.output_dir)


class Crash(Exception):
    pass


def crash() -> None:
    raise Crash


def run_config_of(model: ByteConfig, training: TrainingConfig, optimizer: OptimizerConfig) -> RunConfig:
    """For steps without data: paths that nobody looks at."""
    data = DataConfig((SourceConfig("corpus"),), "tokenizer", "shards", sequence_length=model.max_position_embeddings)
    return RunConfig("run", model, data, training, optimizer)

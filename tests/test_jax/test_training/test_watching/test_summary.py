"""The last words of a run are true of its log."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.summary import summary


def config(run_dir: Path, *, lora: object | None = None) -> Any:
    """What a summary reads of a run's config."""
    return SimpleNamespace(
        output_dir=str(run_dir),
        training=SimpleNamespace(max_steps=3),
        data=SimpleNamespace(validation_fraction=0.1),
        lora=lora,
    )


def words(run_dir: Path, monkeypatch: pytest.MonkeyPatch, steps: int, **fields: Any) -> list[str]:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with MetricsLog(run_dir, 0, 3) as log:
        for step in range(1, steps + 1):
            now[0] += 2
            log.train(step, {"loss": 2.0, "tokens": 1000})
            with log.paused("validation"):
                now[0] += 1
                log.validation(step, {"loss": [3.0, 1.0, 2.0][step - 1]})
        return summary(config(run_dir, **fields), log, steps).splitlines()


def test_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    head, *rows, memory, evaluate, generate, plot, export = words(run, monkeypatch, 3)
    assert head == f"3 steps done; checkpoints, config and metrics in {run}"
    assert rows == [
        "trained      3 of 3 steps, 3,000 tokens",
        "time         0:00:09: steps 44% (waiting for data 0%), validating 33%, other 22%",
        "speed        500 tokens/s, 2 s a step",
        "validation   loss 2.0000 (best 1.0000 at step 2), perplexity 7.39 (best 2.72 at step 2)",
    ]
    assert memory.startswith("peak memory  ") and memory.endswith(" MiB of the process")
    assert evaluate == f"next         stellarbyte evaluate {run}"
    assert (generate.split()[:2], plot.split()[:2]) == (["stellarbyte", "generate"], ["stellarbyte", "plot"])
    assert export.endswith(f"stellarbyte convert to-hf {run} run-hf")


def test_a_run_of_adapters_that_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = words(tmp_path, monkeypatch, 2, lora=object())
    assert lines[1] == "trained      2 of 3 steps, 2,000 tokens"
    assert "convert adapter to-peft" in lines[-1]

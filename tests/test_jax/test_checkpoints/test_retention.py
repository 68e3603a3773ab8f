"""The rules keep what a user would pick by hand, and Orbax deletes the rest, no earlier than it may."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, checkpoint_steps
from stellarbyte_jax.checkpoints.needed import note_needed
from stellarbyte_jax.checkpoints.retention import Retention
from stellarbyte_jax.config import CheckpointConfig


def kept(config: CheckpointConfig, run: Path, steps: range, figures: dict[int, Any]) -> list[int]:
    return [step for step, reasons in Retention(config, run, figures).reasons(steps).items() if reasons]


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy", "validation_task_quiz"])
def test_the_rules_keep_what_one_would_pick_by_hand(metric: Any, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        values = dict(zip(range(0, 100, 5), generator.permutation(20).tolist(), strict=True))
        validated = {step: value for step, value in values.items() if generator.random() < 0.7}
        limit, best, every = (int(number) for number in generator.integers(1, 5, 3))
        config = CheckpointConfig(
            5, save_total_limit=limit, keep_best=best, metric_for_best_model=metric, keep_every_steps=10 * every
        )
        by_figure = sorted(validated, key=validated.__getitem__, reverse=config.greater_is_better)
        steps = range(0, 100, 5)
        expected = {*steps[-limit:], *by_figure[:best], *(step for step in steps if step % (10 * every) == 0)}
        figures = {step: {metric: value} for step, value in validated.items()}
        assert kept(config, tmp_path, steps, figures) == sorted(expected)


def test_a_figure_that_is_not_finite_is_never_best(tmp_path: Path) -> None:
    figures = {5: {"validation_loss": None}, 10: {"validation_loss": 3.0}}
    config = CheckpointConfig(5, save_total_limit=1, keep_best=3)
    assert kept(config, tmp_path, range(5, 25, 5), figures) == [10, 20]


def test_what_adapters_stand_on_is_kept_and_what_keeps_each_is_told(tmp_path: Path) -> None:
    note_needed(tmp_path, 10, tmp_path / "adapters")
    config = CheckpointConfig(5, save_total_limit=1, keep_every_steps=20)
    assert Retention(config, tmp_path, {}).reasons([5, 10, 20, 25]) == {
        5: [],
        10: ["another run needs it"],
        20: ["every 20 steps"],
        25: ["newest 1"],
    }


def test_what_a_rollback_goes_back_to_is_kept(tmp_path: Path) -> None:
    """A signal has saved step 12 and the clock step 14."""
    config = CheckpointConfig(5, save_total_limit=1)
    reasons = Retention(config, tmp_path, {}, rolls_back=True).reasons([5, 10, 12, 14])
    assert reasons == {5: [], 10: ["a rollback goes back to it"], 12: [], 14: ["newest 1"]}


def test_orbax_deletes_the_rest_and_a_last_validation_counts(tmp_path: Path) -> None:
    """The best is known before the next save, as in a run; the last step is saved before it is validated."""
    config = CheckpointConfig(1, save_total_limit=1, keep_best=1, keep_every_steps=3)
    figures: dict[int, dict[str, float]] = {}
    losses = {1: 5.0, 2: 1.0, 3: 4.0, 4: 2.0, 5: 0.5}
    seen = {}
    for some in ((1, 2, 3), (4, 5)):  # and a run that goes on knows the figures of what was kept
        with Checkpointer(tmp_path, config, figures) as checkpointer:
            for step in some:
                if step < 5:
                    figures[step] = {"validation_loss": losses[step]}
                checkpointer.save(step, {"a": np.full(3, step, np.float32)}, None, RunMetadata({}, {}))
                checkpointer.wait()
                seen[step] = checkpoint_steps(tmp_path)
            if 5 in some:
                figures[5] = {"validation_loss": losses[5]}
                checkpointer.delete_what_nothing_keeps()
    assert seen == {1: [1], 2: [2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 3, 5]}
    assert checkpoint_steps(tmp_path) == [3, 5]
    assert sorted(entry.name for entry in (tmp_path / "checkpoints").iterdir()) == ["3", "5"]

"""Tracks a run with Weights & Biases; WANDB_MODE=offline keeps it on this machine, in RUN/wandb."""

from collections.abc import Mapping

import wandb

from stellarbyte_jax.training.watching.trackers.tracker import TrackedRun, Tracker


def open_tracker(run: TrackedRun) -> Tracker:
    """A run of the project training.project, which goes on if it was there before."""
    return _WeightsAndBiases(run)


class _WeightsAndBiases:
    def __init__(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=run.project,
            id=run.run_id,
            name=run.name,
            dir=str(run.run_dir),
            config=run.config,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        # A step that is recorded again after a crash has the same figures; W&B's own counter could not go back.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log({**figures, "step": step})

    def close(self) -> None:
        self._run.finish()

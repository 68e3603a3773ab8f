"""Tracks a run with SwanLab; SWANLAB_MODE=offline keeps it on this machine, in RUN/swanlab."""

from collections.abc import Mapping

import swanlab

from stellarbyte_jax.training.watching.trackers.tracker import TrackedRun, Tracker


def open_tracker(run: TrackedRun) -> Tracker:
    """An experiment of the project training.project, which goes on if it was there before."""
    return _SwanLab(run)


class _SwanLab:
    def __init__(self, run: TrackedRun) -> None:
        self._run = swanlab.init(
            project=run.project,
            id=run.run_id,
            name=run.name,
            log_dir=str(run.run_dir / "swanlab"),
            config=run.config,
            resume="allow",
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()

"""Tracks a run with Trackio, which keeps it in TRACKIO_DIR on this machine."""

from collections.abc import Mapping

import trackio

from stellarbyte_jax.training.watching.trackers.tracker import TrackedRun, Tracker


def open_tracker(run: TrackedRun) -> Tracker:
    """A run of the project training.project, which goes on if it was there before."""
    return _Trackio(run)


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.run_id}",  # a run goes on by its name
            config=run.config,
            resume="allow",
            embed=False,
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        self._run.finish()

"""Tracks a run with TensorBoard, in RUN/tensorboard."""

from collections.abc import Mapping

from tensorboardX import SummaryWriter

from stellarbyte_jax.training.watching.trackers.tracker import TrackedRun, Tracker


def open_tracker(run: TrackedRun) -> Tracker:
    """A writer of event files. What an earlier process wrote beyond the first step is purged."""
    return _TensorBoard(run)


class _TensorBoard:
    def __init__(self, run: TrackedRun) -> None:
        purge_step = run.first_step + 1 if run.first_step else 0
        # A file of its own: two that begin within a second would have one name.
        suffix = f".from-{run.first_step}"
        self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=purge_step, filename_suffix=suffix)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()

"""What a tracker is told, and what it does; each runs in a process of its own: see child.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        run_dir: the folder of the run; trackers that write files do so below it.
        project: what the services group runs by.
        run_id: 16 letters and digits, the same whenever the run goes on.
        config: the run's config, as JSON values.
        first_step: the number of steps that were done before. Steps beyond it that an earlier process has recorded are
            recorded again, with the same figures.
    """

    run_dir: Path
    project: str
    run_id: str
    config: dict[str, Any]
    first_step: int

    @property
    def name(self) -> str:
        """What people see: the name of the run's folder."""
        return self.run_dir.resolve().name


class Tracker(Protocol):
    """An open tracker."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Records the figures of a step, under names such as train/loss and validation/loss."""

    def close(self) -> None:
        """Sends what has not been sent yet."""

"""Lists the checkpoints of a run for the page, and learns from `stellarbyte checkpoints` why each is kept."""

import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stellarbyte.checkpoint_names import WHOLE, committed_at, size_of, step_of
from stellarbyte.figures import VALIDATION
from stellarbyte.places import BucketPath, Place
from stellarbyte.watch.children import Children
from stellarbyte.watch.series import Series

# Between two commands that ask why checkpoints are kept; each takes a few seconds of a core.
_SECONDS_BETWEEN = 30.0


@dataclass
class _Kept:
    """The steps that were asked about, and what keeps each."""

    steps: tuple[int, ...] = ()
    by: dict[int, list[str]] = field(default_factory=dict)


class Checkpoints:
    """The checkpoints of the run in a folder, of pretraining or fine-tuning."""

    def __init__(self, run_dir: Place, children: Children) -> None:
        self._run_dir, self._children = run_dir, children
        self._rows: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._kept, self._asked_at, self._asking = _Kept(), -_SECONDS_BETWEEN, False

    def read(self) -> list[int]:
        """Looks at the folder; the steps of what is there, ascending. Raises OSError, or UserError of a bucket."""
        folder = self._run_dir / "checkpoints"
        there = self._listed(folder)
        rows = {step: self._rows.get(step) or _row(step, path) for step, path in sorted(there.items())}
        self._rows = rows
        steps = tuple(rows)
        of_pretraining = all(path.name.isdecimal() for path in there.values())
        if steps and of_pretraining and steps != self._kept.steps and not self._asking:
            self._ask(steps)
        return list(steps)

    def told(self, series: Series) -> list[dict[str, Any]]:
        """A row for each, ready for JSON: step, time, bytes, validation loss, and what keeps it, None if not known."""
        with self._lock:
            kept = dict(self._kept.by)
        return [
            {**row, "validation_loss": series.at_step(f"{VALIDATION}loss", step), "kept_by": kept.get(step)}
            for step, row in self._rows.items()
        ]

    def _listed(self, folder: Place) -> dict[int, Place]:
        found: dict[int, Place] = {}
        try:
            entries: list[Place] = [*folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return found
        for entry in entries:
            step = step_of(entry.name, finetuning=True)
            if step is None or (isinstance(entry, BucketPath) and step not in self._rows and not _is_whole(entry)):
                continue
            found[step] = entry
        return found

    def _ask(self, steps: tuple[int, ...]) -> None:
        now = time.monotonic()
        if now - self._asked_at < _SECONDS_BETWEEN:
            return
        self._asked_at, self._asking = now, True

        def done(output: str, error: str | None) -> None:
            by: dict[int, list[str]] = {}
            if error is None:
                with suppress(ValueError, KeyError, TypeError):
                    by = {each["step"]: each["kept_by"] for each in json.loads(output)["checkpoints"]}
            with self._lock:
                self._kept, self._asking = _Kept(steps, by), False

        self._children.begin(["checkpoints", str(self._run_dir), "--json"], done)


def _is_whole(checkpoint: BucketPath) -> bool:
    return (checkpoint / WHOLE).exists()


def _row(step: int, path: Place) -> dict[str, Any]:
    saved_at = None
    if isinstance(path, Path):
        saved_at = committed_at(path)
        if saved_at is None:  # a Trainer leaves no record
            with suppress(OSError):
                saved_at = path.stat().st_mtime
    return {"step": step, "saved_at": saved_at, "bytes": size_of(path)}

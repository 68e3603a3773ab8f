"""Reads the figures of a run as curves over its steps or its tokens."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.figures import finite, value_of
from stellarbyte.metrics_file import records
from stellarbyte.places import Place

# The names of tasks' accuracies begin so.
TASK = "validation_task_"
# The figures that are read as curves, beside those of tasks.
DRAWN = ("loss", "validation_loss", "validation_bits_per_byte", "learning_rate", "grad_norm", "tokens_per_second")


def task_names(names: Iterable[str]) -> list[str]:
    """Those of the names that are accuracies of tasks (training.eval_tasks), not those by bytes."""
    return [name for name in names if name.startswith(TASK) and not name.endswith("_by_bytes")]


@dataclass(frozen=True)
class Curve:
    """A figure of a run: int64 [n] steps, the tokens trained on up to each of them, and float64 [n] values."""

    steps: np.ndarray
    tokens: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class RunCurves:
    """The curves of a run, by the names in DRAWN and of tasks; a figure that it has never recorded is not there."""

    name: str
    curves: dict[str, Curve]

    @property
    def steps(self) -> int:
        """The last step that has a record."""
        return max(int(curve.steps[-1]) for curve in self.curves.values())


def read_runs(run_dirs: Sequence[Place]) -> list[RunCurves]:
    """The curves of several runs, each under a name that no other of them has.

    Raises:
        UserError: one is no run, has recorded nothing, or its metrics cannot be read.
    """
    names = short_names(run_dirs)
    return [RunCurves(name, read_curves(run_dir)) for name, run_dir in zip(names, run_dirs, strict=True)]


def read_curves(run_dir: Place) -> dict[str, Curve]:
    """The curves of the run in a folder; raises as `read_runs` does."""
    path = run_dir / "metrics.jsonl"
    if not (os.path.lexists(path) if isinstance(path, Path) else path.exists()):
        raise UserError(f"{run_dir} holds no metrics.jsonl: name the output_dir of a run that has trained")
    points: dict[str, list[tuple[int, int, float]]] = {}
    tokens = 0
    for _, record in records(path):
        if "loss" in record:  # older runs have not recorded their sum
            tokens = int(finite(record.get("tokens_seen")) or tokens + (finite(record.get("tokens")) or 0))
        for name in (*DRAWN, *task_names(record)):
            value = finite(value_of(record, name))
            if value is not None:
                points.setdefault(name, []).append((record["step"], tokens, value))
    if not points:
        raise UserError(f"{path} has recorded no figure yet: it is drawn once the run has done a step")
    return {name: Curve(*map(np.array, zip(*found, strict=True))) for name, found in points.items()}


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each; at both ends of as many as there are. float64 [n]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    start = np.maximum(at - (window - 1) // 2, 0)
    stop = np.minimum(at + window // 2 + 1, len(values))
    return (sums[stop] - sums[start]) / (stop - start)


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """The places of at most `most` of the values, ascending: the lowest and the highest of each stretch stay."""
    if len(values) <= most:
        return np.arange(len(values))
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), (most - 2) // 2):
        kept |= {int(stretch[np.argmin(values[stretch])]), int(stretch[np.argmax(values[stretch])])}
    return np.array(sorted(kept))


def short_names(named: Iterable[Place]) -> list[str]:
    """The last part of each path, with as many parts before it as it takes to tell all apart.

    Raises:
        UserError: a path is named twice.
    """
    paths: list[Place] = [path.resolve() for path in named]
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path} is named twice: name each once")
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names

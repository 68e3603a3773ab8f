"""Finds the runs that a user has named: a run, a folder of runs, or a run that is yet to begin."""

from pathlib import Path

from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, Place

_DEPTH = 2
# A folder of so many entries holds data, not runs.
_MOST_ENTRIES = 1000
MOST_RUNS = 100


def is_run(folder: Place) -> bool:
    """Whether a folder holds what a run writes."""
    names = ("metrics.jsonl", "log.txt")
    if any((folder / name).exists() for name in names):
        return True
    return (folder / "config.yaml").exists() and (folder / "checkpoints").is_dir()


def check_named(path: Place) -> None:
    """Refuses what can be no run, and no folder of runs. Raises UserError."""
    if isinstance(path, BucketPath):
        path.is_dir()  # a bucket that is missing is told
        return
    try:
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: name a run's folder, or a folder of runs")
        if path.is_dir():
            next(path.iterdir(), None)
        for name, what in (
            ("adapter_config.json", "an adapter"),
            ("config.json", "a model"),
            ("manifest.json", "token shards"),
        ):
            if (path / name).is_file() and not is_run(path):
                raise UserError(f"{path} is {what}, which does not train: name the output_dir of a run")
        if not path.exists() and not path.absolute().parent.is_dir():
            raise UserError(f"{path} is not there, nor is the folder above it: name a run, or where one will begin")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def runs_of(path: Place) -> list[Place]:
    """The runs at or below a named path, the path itself where none is there yet; at most MOST_RUNS.

    Raises:
        OSError, UserError: it cannot be read now.
    """
    if is_run(path):
        return [path]
    found = _below(path, _DEPTH)
    return found[:MOST_RUNS] or [path]


def _below(folder: Place, depth: int) -> list[Place]:
    found: list[Place] = []
    for entry in _folders(folder):
        if is_run(entry):
            found.append(entry)
        elif depth > 1:
            found += _below(entry, depth - 1)
    return found


def _folders(folder: Place) -> list[Place]:
    try:
        entries: list[Place] = []
        for entry in folder.iterdir():
            entries.append(entry)
            if len(entries) > _MOST_ENTRIES:
                return []
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return sorted(
        (entry for entry in entries if not entry.name.startswith(".") and _is_folder(entry)),
        key=lambda entry: entry.name,
    )


def _is_folder(entry: Place) -> bool:
    # A link may lead in a circle, or out of what was named.
    return entry.is_dir() and not (isinstance(entry, Path) and entry.is_symlink())

"""Looks for what killed commands have left in the runs and folders here."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from stellarbyte.checkpoint_names import UNFINISHED
from stellarbyte.environment.finding import Finding, well
from stellarbyte.folder_lock import folder_of, lock_holder

CHECK = "left behind"
_MOST_ENTRIES = 2000
_MOST_TOLD = 10


def check_runs(here: Path | None = None) -> list[Finding]:
    """Locks whose process is gone, and unfinished files and folders that no process is writing.

    here: the folder to look in, the working folder by default; so are runs/ in it, and their checkpoints.
    """
    here = here or Path.cwd()
    findings: list[Finding] = []
    for folder in (here, here / "runs"):
        for entry in _entries(folder):
            findings += _of_entry(entry)
    told = findings[:_MOST_TOLD]
    if len(findings) > len(told):
        told.append(Finding(CHECK, "note", f"and {len(findings) - len(told)} more like these"))
    return told or well(CHECK, "nothing by killed commands, here and in runs/")


def _of_entry(entry: Path) -> Iterator[Finding]:
    if entry.name.startswith(".") and entry.name.endswith(".lock"):
        holder = lock_holder(folder_of(entry))
        if holder is not None and holder["gone"]:
            words = f"{entry} is the lock of process {holder.get('pid')}, which was killed; it blocks nobody"
            yield Finding(CHECK, "note", words, f"rm {shlex.quote(str(entry))}")
    elif entry.name.startswith(".") and entry.name.endswith(".partial") and not _is_written(_target(entry)):
        words = f"{entry} was being made by a command that was killed; the same command goes on with it or removes it"
        yield Finding(CHECK, "note", words, f"rm -r {shlex.quote(str(entry))}")
    elif (entry / "checkpoints").is_dir() and not _is_written(entry):
        for checkpoint in _entries(entry / "checkpoints"):
            if UNFINISHED in checkpoint.name:
                words = f"{checkpoint} is a checkpoint that was not finished; the run removes it when it goes on"
                yield Finding(CHECK, "note", words, f"rm -r {shlex.quote(str(checkpoint))}")


def _is_written(folder: Path) -> bool:
    holder = lock_holder(folder)
    return holder is not None and not holder["gone"]


def _target(partial: Path) -> Path:
    return partial.with_name(partial.name.removeprefix(".").removesuffix(".partial"))


def _entries(folder: Path) -> list[Path]:
    try:
        found = []
        for entry in folder.iterdir():
            found.append(entry)
            if len(found) == _MOST_ENTRIES:
                break
        return sorted(found)
    except OSError:  # it is not there, or another user's
        return []

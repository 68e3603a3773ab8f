"""Notes what a command has done in an unfinished folder, so that the same command goes on there when interrupted."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.reading import read_text

NAME = ".unfinished.jsonl"

# A note has about 150 bytes, so this is enough for 400,000 tensors.
_MOST_BYTES = 64 << 20


class Journal:
    """The notes in `folder` on a task, those of an earlier command that had the same task among them.

    task: what is made of what, as JSON values. Notes on any other task are forgotten.
    done: name -> the value that was noted with it.

    Raises:
        OSError: the notes cannot be written.
    """

    def __init__(self, folder: Path, task: Mapping[str, Any]) -> None:
        self._path = folder / NAME
        known = _read(self._path)
        if not known or known[0] != task:
            known = [dict(task)]
            self._path.write_text(json.dumps(task) + "\n", encoding="utf-8")
        self.done: dict[str, Any] = {note["name"]: note["value"] for note in known[1:]}

    def note(self, name: str, value: Any) -> None:
        """Notes that something is done, and on disk; raises OSError if it cannot be noted."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "value": value}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[name] = value

    def remove(self) -> None:
        """Removes the notes, because all is done."""
        self._path.unlink()


def can_go_on(folder: Path, task: Mapping[str, Any]) -> bool:
    """Whether something of this very task has been done in `folder`."""
    known = _read(folder / NAME)
    return len(known) > 1 and known[0] == task


def _read(path: Path) -> list[dict[str, Any]]:
    """The task and the notes; nothing if there are none, or something else has this name."""
    try:
        lines = read_text(path, _MOST_BYTES).split("\n")[:-1]  # what has no line end was being written
        notes = [json.loads(line) for line in lines]
    except (UserError, ValueError, RecursionError):
        return []
    good = all(isinstance(note, dict) for note in notes) and all(note.keys() == {"name", "value"} for note in notes[1:])
    return notes if good else []

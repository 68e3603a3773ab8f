"""Notes in a run's folder which of its checkpoints other runs need, so that no rule deletes one of them."""

import re
import sys
from collections import defaultdict
from contextlib import suppress

from stellarbyte.errors import UserError, one_line
from stellarbyte.files import sha256_of_json, write_json
from stellarbyte.places import Place, place
from stellarbyte.reading import read_json_object

# In the run's folder; it holds one file for each run of adapters.
_FOLDER = "needed_by"
_NOTE = re.compile(r"(0|[1-9][0-9]{0,17})-[0-9a-f]{16}\.json")


def note_needed(run_dir: str | Place, step: int, other_dir: str | Place) -> None:
    """Notes in the run's folder that the run in `other_dir` needs its checkpoint of `step`.

    Adapters stand on it, or it teaches a run. It warns if the folder cannot be written, as that of somebody else's run.
    """
    other = str(place(other_dir).resolve())
    note = place(run_dir) / _FOLDER / f"{step}-{sha256_of_json(other)[:16]}.json"
    if note.exists():
        return
    try:
        write_json(note, {"step": step, "run": other})
    except UserError as error:
        print(
            f"stellarbyte: warning: {one_line(str(error))}; so nothing keeps {run_dir} from deleting its checkpoint of "
            f"step {step}, which this run needs, if it goes on training",
            file=sys.stderr,
        )


def needed_by(run_dir: str | Place) -> dict[int, list[str]]:
    """Step -> the folders of the runs that need this checkpoint, as they were when they began to."""
    needed: dict[int, list[str]] = defaultdict(list)
    for step, note in _notes(place(run_dir)):
        other = None
        with suppress(UserError):
            content = read_json_object(note)
            other = content.get("run", content.get("adapters"))  # as an earlier version called it
        needed[step].append(other if isinstance(other, str) else f"a run that {note} no longer names")
    return dict(needed)


def forget_needed(run_dir: str | Place, step: int) -> None:
    """Removes the notes about a checkpoint that is to be deleted all the same."""
    for noted, note in _notes(place(run_dir)):
        if noted == step:
            note.unlink(missing_ok=True)


def _notes(run_dir: Place) -> list[tuple[int, Place]]:
    folder = run_dir / _FOLDER
    notes: list[Place] = sorted(folder.iterdir()) if folder.is_dir() else []
    return [(int(match[1]), note) for note in notes if (match := _NOTE.fullmatch(note.name))]

"""A run's metrics.jsonl, a record a line, read as what a killed run or somebody else may have left there."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.files import written_whole
from stellarbyte.reading import MIB, parse_json

# Bounds that no run comes near: a line has some hundred bytes, and there are one or two a step.
MOST_LINE_BYTES = MIB
MOST_BYTES = 16 << 30


def record_of(line: str) -> dict[str, Any] | None:
    """The line's record; None where it is none: cut off when a run was killed, or not written by a run."""
    try:
        record = parse_json(line, "the line")
    except UserError:
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line of the file that is a record, and the record; nothing where there is no file.

    Raises:
        UserError: it cannot be read, is no regular file, or is larger than any run's.
    """
    for line in _lines(path):
        text = line.decode("utf-8", "replace").strip()
        record = record_of(text)
        if record is not None:
            yield text, record


def drop_records_after(
    path: Path, step: int, kept: Callable[[dict[str, Any]], None] = lambda _: None, *, lacks_validation: bool = False
) -> None:
    """Leaves the records up to `step` in the file, each of which `kept` is told, and nothing else; of step 0 none.

    From step 0 on everything is done again, the validation before training too. Where `lacks_validation`, the
    validation of that step is done again.

    Raises:
        UserError: the file cannot be read, as `records`, or written.
    """
    if not os.path.lexists(path):
        return
    with written_whole(path) as file:
        for line, record in records(path):
            if step > 0 and record["step"] <= step - (lacks_validation and "loss" not in record):
                file.write(f"{line}\n")
                kept(record)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a folder, a pipe or a device, where a run's metrics belong: move it away")
        if status.st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES >> 30} GiB, the most that a run's metrics may have")
        with path.open("rb") as file:
            whole = True  # whether the last line was read to its end
            while line := file.readline(MOST_LINE_BYTES):
                ends = line.endswith(b"\n") or len(line) < MOST_LINE_BYTES
                if whole and ends:
                    yield line
                whole = ends
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error

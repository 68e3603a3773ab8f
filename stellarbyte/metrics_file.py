"""Reads a run's metrics.jsonl, one record a line; a killed run or somebody else may have left broken lines in it."""

import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.figures import finite
from stellarbyte.files import written_whole
from stellarbyte.places import Place
from stellarbyte.reading import MIB, parse_json

# Bounds that no run comes near: a line has about a hundred bytes, and there are one or two lines a step.
MOST_LINE_BYTES = MIB
MOST_BYTES = 16 << 30


def record_of(line: str) -> dict[str, Any] | None:
    """The line's record; None if it is not one: it was cut off when a run was killed, or no run wrote it."""
    try:
        record = parse_json(line, "the line")
    except UserError:
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return record if isinstance(step, int) and not isinstance(step, bool) else None


def records(path: Place) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of the file that are records, each with its record; none if there is no file.

    Raises:
        UserError: the file cannot be read, is not a regular file, or is larger than any run's.
    """
    for line in _lines(path):
        text = line.decode("utf-8", "replace").strip()
        record = record_of(text)
        if record is not None:
            yield text, record


def drop_records_after(
    path: Path, step: int, kept: Callable[[dict[str, Any]], None] = lambda _: None, *, lacks_validation: bool = False
) -> None:
    """Removes all records after `step` from the file, and all lines that are not records.

    With step 0 no record stays, because the validation before training will be done again as well.

    Args:
        path: the file; nothing is done if there is none.
        step: the last step whose records stay.
        kept: called with each record that stays.
        lacks_validation: whether the validation at `step` will be done again, so that its record is removed too.

    Raises:
        UserError: the file cannot be read (see `records`) or written.
    """
    if not os.path.lexists(path):
        return
    with written_whole(path) as file:
        for line, record in records(path):
            if step > 0 and record["step"] <= step - (lacks_validation and "loss" not in record):
                file.write(f"{line}\n")
                kept(record)


class TokensSeen:
    """The sum of the tokens of all steps, by the steps' records in their order.

    total: the sum; None if a step's record is missing, until a later one tells the sum.
    """

    def __init__(self) -> None:
        self.total: int | None = 0
        self._step = 0

    def add(self, record: Mapping[str, Any], steps: int = 1) -> None:
        """Adds the tokens of a record, which is over so many steps; one that tells the sum itself is believed."""
        told, tokens = finite(record.get("tokens_seen")), finite(record.get("tokens"))
        if told is not None:
            self.total = int(told)
        elif record["step"] != self._step + steps or tokens is None:
            self.total = None
        elif self.total is not None:
            self.total += int(tokens)
        self._step = record["step"]


def _lines(path: Place) -> Iterator[bytes]:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is a folder, a pipe or a device, where a run's metrics belong: move it away")
        if status.st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES >> 30} GiB, the most that a run's metrics may have")
        with path.open("rb") as file:
            whole = True  # whether the last line was read completely
            while line := file.readline(MOST_LINE_BYTES):
                ends = line.endswith(b"\n") or len(line) < MOST_LINE_BYTES
                if whole and ends:
                    yield line
                whole = ends
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error

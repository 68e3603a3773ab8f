"""Reads the ledgers of all processes of a run, step by step, and says which of their lines are damaged."""

import heapq
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte_jax.data.ledger import FOLDER
from stellarbyte_jax.data.mixture import Segment

_MOST_LINE_BYTES = 1 << 28


@dataclass(frozen=True)
class Beginning:
    """The facts with which a start of the run began its part of a ledger: see ledger.facts."""

    after: int
    processes: int
    sources: tuple[str, ...]
    rows: tuple[int, ...]
    segments: tuple[Segment, ...]
    data: str
    part: int = 0


class Consumed(NamedTuple):
    """The samples that one process has read for a step: their numbers, and of each the source, epoch and row."""

    step: int
    skipped: bool
    beginning: Beginning
    where: str
    ids: np.ndarray  # int64 [samples, 4]


def consumed(run_dir: Path, damaged: Callable[[str], None]) -> Iterator[list[Consumed]]:
    """What all processes have read for each step, in the order of steps; `damaged` is called with each complaint.

    Raises:
        UserError: the run has no ledger, or a file of it cannot be read.
    """
    paths = sorted((run_dir / FOLDER).glob("process-*.jsonl"))
    if not paths:
        raise UserError(f"{run_dir} has no ledger: a run writes one with data.ledger true")
    files = [_records(path, damaged) for path in paths]
    # Every batch has later samples of its part than the one before, also if steps are done again after a rollback.
    in_order = heapq.merge(*files, key=lambda record: (record.beginning.part, int(record.ids[0, 0])))
    for _, of_step in groupby(in_order, key=lambda record: (record.beginning.part, record.step, record.skipped)):
        yield list(of_step)


def _records(path: Path, damaged: Callable[[str], None]) -> Iterator[Consumed]:
    beginning: Beginning | None = None
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MOST_LINE_BYTES), b""), 1):
                where = f"{path}:{number}"
                try:
                    record = _parsed(line)
                    if "after" in record:
                        beginning = _beginning(record)
                    elif beginning is None:
                        raise ValueError("no start of a run stands before it")
                    else:
                        yield _consumed(record, beginning, where)
                except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
                    reason = "it is cut off" if not line.endswith(b"\n") else str(error) or "it has no such form"
                    damaged(f"{where} is damaged ({reason})")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _parsed(line: bytes) -> dict[str, Any]:
    text, comma, crc32 = line.rstrip(b"\n").rpartition(b',"crc32":')
    if not comma or crc32 != b"%d}" % zlib.crc32(text):
        raise ValueError("its CRC-32 is not that of its content")
    record = json.loads(text + b"}")
    if not isinstance(record, dict):
        raise ValueError("it is no object")
    return record


def _beginning(record: dict[str, Any]) -> Beginning:
    segments = tuple(Segment(first, tuple(weights)) for first, weights in record["weights"])
    rows, sources = tuple(map(int, record["rows"])), tuple(map(str, record["sources"]))
    if min(rows) < 1 or len(sources) != len(rows) or any(len(s.weights) != len(rows) for s in segments):
        raise ValueError("its sources, rows and weights do not go together")
    after, processes, part = int(record["after"]), int(record["processes"]), int(record.get("part", 0))
    return Beginning(after, processes, sources, rows, segments, str(record["data"]), part)


def _consumed(record: dict[str, Any], beginning: Beginning, where: str) -> Consumed:
    numbers = np.concatenate([np.arange(first, end) for first, end in record["numbers"]])
    columns = [
        numbers,
        *(np.repeat(*np.array(record[name]).T) for name in ("source", "epoch")),
        np.array(record["row"]),
    ]
    ids = np.stack(columns, axis=1)
    if ids.dtype != np.int64 or ids.min() < 0 or ids[:, 1].max() >= len(beginning.rows):
        raise ValueError("its samples are of no source")
    return Consumed(int(record["step"]), bool(record.get("skipped")), beginning, where, ids)

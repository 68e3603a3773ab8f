"""Writes down which samples each step of a run has consumed, as they were read: RUN/ledger/process-00000.jsonl."""

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO, Self

from stellarbyte.errors import UserError
from stellarbyte_jax.data.sample_order import SampleId, SampleOrder
from stellarbyte_jax.processes.joined import Processes

FOLDER = "ledger"

_APPLIED = re.compile(rb'\{"step":(\d+),"numbers"')


class Ledger:
    """The ledger of one process, in a file of JSON lines.

    Each start of the run adds a line with its `after` (the steps that were done before) and `facts`. Each step adds
    one with the numbers of the samples that this process has read for it, and of each of them the source, the source's
    epoch and the row. Numbers are [first, end without it], sources and epochs [value, how often], in the order of
    `row`. A step that was not applied, and whose samples do not come again, is `skipped`. Every line ends with the
    CRC-32 of what is before it.

    What an interrupted run has left beyond step `after` is removed; process 0 also removes it from the files of
    processes that are no more.

    Args:
        run_dir: the output_dir of the run.
        after: the number of steps that are done.
        processes: those that train the run, of which this is one.
        facts: the facts of this start, see `facts`; None to write nothing from here on.
        noted: gives a context that notes a UserError, for errors that come once training has begun.
        rolled_back: whether the run begins again after `roll_back`, so that there is nothing to remove.

    Raises:
        UserError: from entering it, if the file cannot be written.
    """

    def __init__(
        self,
        run_dir: str | Path,
        after: int,
        processes: Processes,
        facts: Mapping[str, Any] | None,
        noted: Callable[[], AbstractContextManager[None]] = nullcontext,
        *,
        rolled_back: bool = False,
    ) -> None:
        self._folder, self._after = Path(run_dir) / FOLDER, after
        self._process, self._processes = processes.index, processes.count
        self._facts, self._noted, self._rolled_back = facts, noted, rolled_back
        self._file: IO[str] | None = None
        self._read: dict[int, Mapping[int, SampleId]] = {}  # of steps that are not known to be applied yet

    def __enter__(self) -> Self:
        path = self._path(self._process)
        try:
            for other in [] if self._rolled_back else self._folder.glob("process-*.jsonl"):
                if other == path or (self._process == 0 and _number(other) >= self._processes):
                    with other.open("r+b") as file:
                        file.truncate(_end_of(file, self._after))
            if self._facts is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = path.open("a", encoding="utf-8", buffering=1)
                self._file.write(_line({"after": self._after, "processes": self._processes, **self._facts}))
        except OSError as error:
            raise self._error(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def read(self, step: int, samples: Mapping[int, SampleId]) -> None:
        """Notes the samples, by their numbers, that this process has read for a step."""
        if self._file is not None:
            self._read[step] = samples

    def after(self, record: Callable[[int, Mapping[str, Any]], None]) -> Callable[[int, Mapping[str, Any]], None]:
        """A function that records an applied step with its figures by `record`, and then its samples here."""

        def applied(step: int, figures: Mapping[str, Any]) -> None:
            record(step, figures)
            self._write(step, skipped=False)

        return applied

    def skip(self, step: int) -> None:
        """Writes down the samples of a step that is left out; what was read for later steps will come again."""
        self._write(step, skipped=True)
        self._read.clear()

    def roll_back(self, target: int, step: int) -> None:
        """Marks the samples of all steps after `target`, up to the bad one `step`, as skipped, and ends the ledger."""
        self.skip(step)
        if self._file is None:
            return
        with self._noted():
            try:
                with self._path(self._process).open("r+b") as file:
                    end = _end_of(file, target)
                    file.seek(end)
                    records = [json.loads(line) for line in file if line.startswith(b'{"step"')]
                    file.seek(end)
                    file.truncate()
                    for record in records:
                        file.write(_line({"step": record["step"], "skipped": True, **record}).encode())
            except (OSError, ValueError) as error:
                raise self._error(error) from error

    def sync(self) -> None:
        """Puts everything on the disk, before a checkpoint says that these steps are done."""
        if self._file is not None:
            with suppress(OSError):  # where a file cannot be synced, its lines are there unless the machine fails
                os.fsync(self._file.fileno())

    def _write(self, step: int, *, skipped: bool) -> None:
        samples = self._read.pop(step, None)
        if self._file is None or samples is None:
            return
        numbers = sorted(samples)
        record: dict[str, Any] = {"step": step, "skipped": True} if skipped else {"step": step}
        record |= {
            "numbers": _spans(numbers),
            "source": _runs(samples[number].source for number in numbers),
            "epoch": _runs(samples[number].epoch for number in numbers),
            "row": [samples[number].row for number in numbers],
        }
        with self._noted():
            try:
                self._file.write(_line(record))
            except OSError as error:
                file, self._file = self._file, None  # it may end in half a line, so nothing may follow it
                with suppress(OSError):
                    file.close()
                raise self._error(error) from error

    def _error(self, error: Exception) -> UserError:
        return UserError(f"{self._path(self._process)} cannot be written: {getattr(error, 'strerror', None) or error}")

    def _path(self, process: int) -> Path:
        return self._folder / f"process-{process:05d}.jsonl"


def facts(sources: Sequence[str], order: SampleOrder, data_sha256: str, part: int = 0) -> dict[str, Any]:
    """What the ledger says of a start: the names and rows of the sources, their weights, and which data they are of.

    sources: the name of each source; for a single stream that is not mixed, any name. part: a number that grows where
    the run goes on with other data, whose samples are counted from 0 again.
    """
    segments = () if order.mixture is None else order.mixture.segments
    weights = [[segment.first, list(segment.weights)] for segment in segments]
    data = {"sources": list(sources), "rows": list(order.rows), "weights": weights, "data": data_sha256}
    return data | ({"part": part} if part else {})


def _number(path: Path) -> int:
    digits = path.stem.removeprefix("process-")
    return int(digits) if digits.isdecimal() else -1


def _end_of(file: BinaryIO, step: int) -> int:
    """The end of the last line of a step that was applied and is not after `step`; 0 if there is none."""
    end, at = 0, 0
    for line in file:
        at += len(line)
        found = _APPLIED.match(line)
        if found is not None and int(found[1]) <= step and line.endswith(b"\n"):
            end = at
    return end


def _line(record: Mapping[str, Any]) -> str:
    content = {name: value for name, value in record.items() if name != "crc32"}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=True)[:-1]
    return f'{text},"crc32":{zlib.crc32(text.encode())}}}\n'


def _spans(numbers: Sequence[int]) -> list[list[int]]:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number:
            spans[-1][1] = number + 1
        else:
            spans.append([number, number + 1])
    return spans


def _runs(values: Iterable[int]) -> list[list[int]]:
    return [[value, len(list(equal))] for value, equal in groupby(values)]

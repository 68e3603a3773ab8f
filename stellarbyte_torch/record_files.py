"""Finds the files of a source and reads their records, each with the file:line where it stands."""

import csv
import glob
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte_torch.data_config import SourceConfig

# A record's fields and its file:line (parquet: the row).
Record = tuple[dict[str, Any], str]

_CSV_CELL_LIMIT = 1 << 28  # characters; an unclosed quote would otherwise swallow the rest of the file
_FIRST_BAD_RECORDS = 5


class RecordError(Exception):
    """What is wrong with one record, after its file:line; whether that ends the run is for BadRecords to say."""


class BadRecords:
    """Ends the run at the first bad record, or counts them and remembers the first few."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.count = 0
        self.first: list[str] = []

    def add(self, complaint: str) -> None:
        """Take note of a record that `complaint` describes, starting with its file:line.

        Raises:
            UserError: the policy is to fail.
        """
        if self.policy == "fail":
            raise UserError(f"{complaint}: mend it, or set data.on_bad_record to skip")
        self.count += 1
        if len(self.first) < _FIRST_BAD_RECORDS:
            self.first.append(complaint)


def source_files(source: SourceConfig) -> list[Path]:
    """Files of a source, sorted by path; in a folder, hidden files and those of other formats are passed over.

    Raises:
        UserError: nothing is there, or a file that was asked for has an unsupported format.
    """
    path = Path(source.path).expanduser()
    supported = f"use {' '.join(_READERS)}"
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [
            file
            for file in path.rglob("*")
            if file.suffix.lower() in _READERS and file.is_file()
            if not any(part.startswith(".") for part in file.relative_to(path).parts)
        ]
        if not found:
            raise UserError(f"the folder {path} holds no file that can be read: {supported}")
    elif glob.has_magic(str(path)):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise UserError(f"no file matches {path}: check the pattern, which is relative to {Path.cwd()}")
    else:
        raise UserError(f"{path} does not exist: check the path, which is relative to {Path.cwd()}")
    for file in found:
        if file.suffix.lower() not in _READERS:
            raise UserError(f"{file} has an unsupported format: {supported}")
    return sorted(found, key=Path.as_posix)


def read_records(path: Path, bad_records: BadRecords) -> Iterator[Record]:
    """Records of a file, in order.

    Raises:
        UserError: the file cannot be read, or holds a bad record that `bad_records` does not skip.
    """
    try:
        yield from _READERS[path.suffix.lower()](path, bad_records)
    except UnicodeDecodeError as error:
        bad_records.add(f"{path} is not valid UTF-8 ({error.reason})")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_text(path: Path, bad_records: BadRecords) -> Iterator[Record]:  # noqa: ARG001 - as the other readers
    yield {"text": path.read_bytes().decode("utf-8-sig")}, f"{path}:1"


def _read_jsonl(path: Path, bad_records: BadRecords) -> Iterator[Record]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            where = f"{path}:{number}"
            try:
                content = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if content:
                    yield _object(json.loads(content), where), where
            except UnicodeDecodeError as error:
                bad_records.add(f"{where} is not valid UTF-8 ({error.reason})")
            except json.JSONDecodeError as error:
                bad_records.add(f"{where} is not valid JSON ({error.msg} at column {error.colno})")
            except (RecursionError, ValueError) as error:  # nested too deep; an integer of thousands of digits
                bad_records.add(f"{where} is not JSON that can be read ({error})")
            except RecordError as error:
                bad_records.add(str(error))


def _read_json(path: Path, bad_records: BadRecords) -> Iterator[Record]:
    content = path.read_bytes().decode("utf-8-sig")
    try:
        for item, line in _json_items(content):
            where = f"{path}:{line}"
            try:
                yield _object(item, where), where
            except RecordError as error:
                bad_records.add(str(error))
    except json.JSONDecodeError as error:  # what follows a syntax error cannot be told
        bad_records.add(f"{path}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno})")
    except (RecursionError, ValueError) as error:
        bad_records.add(f"{path} is not JSON that can be read ({error})")


def _json_items(content: str) -> Iterator[tuple[Any, int]]:
    """The items of a list, or the one object, each with the line it starts on."""
    decoder = json.JSONDecoder()
    at, counted, line = 0, 0, 1

    def skip_space() -> str:
        nonlocal at
        while at < len(content) and content[at] in " \t\r\n":
            at += 1
        return content[at : at + 1]

    def parse() -> tuple[Any, int]:
        nonlocal at, counted, line
        line, counted = line + content.count("\n", counted, at), at
        item, at = decoder.raw_decode(content, at)
        return item, line

    if skip_space() != "[":
        yield parse()
    else:
        at += 1
        if skip_space() != "]":
            while True:
                skip_space()
                yield parse()
                if skip_space() != ",":
                    break
                at += 1
        if skip_space() != "]":
            raise json.JSONDecodeError("Expecting ',' or ']'", content, at)
        at += 1
    if skip_space():
        raise json.JSONDecodeError("Extra data", content, at)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RecordError(f"{where} is not a JSON object but {kind_of(value)}")
    return value


def _read_csv(path: Path, bad_records: BadRecords) -> Iterator[Record]:
    csv.field_size_limit(_CSV_CELL_LIMIT)  # the module has one limit for all; its default of 131072 is short of a page
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{path}:{rows.line_num + 1}"
            try:
                cells = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                bad_records.add(f"{where} is not valid CSV ({error})")
                continue
            if header is None:
                header = cells
            elif cells and len(cells) != len(header):
                bad_records.add(f"{where} has {len(cells)} cells where the header has {len(header)}")
            elif cells:
                yield dict(zip(header, cells, strict=True)), where


def _read_parquet(path: Path, bad_records: BadRecords) -> Iterator[Record]:
    # Imported here, for it takes a third of a second and most sources need none of it.
    import pyarrow
    from pyarrow import parquet

    row = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                for record in batch.to_pylist():
                    row += 1
                    yield record, f"{path}:{row}"
    except pyarrow.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        bad_records.add(f"{path}:{row + 1} is not readable as parquet ({reason})")


_READERS: dict[str, Callable[[Path, BadRecords], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


def kind_of(value: object) -> str:
    """How an error calls a value: null, a string, a list …"""
    names = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")

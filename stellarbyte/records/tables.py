"""Reads the rows of CSV, TSV and parquet tables as records."""

import codecs
import csv
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO

from stellarbyte.errors import UserError, shown_path
from stellarbyte.records import record
from stellarbyte.records.bad_records import BadRecords, RecordError, check_text, names_of
from stellarbyte.records.compression import BLOCK_BYTES, open_file
from stellarbyte.records.record import Record, has_twice, too_long
from stellarbyte.records.text import open_text

_PARQUET_ROWS = 256
_MOST_BYTES_AT_ONCE = 1 << 30


def _check_columns(there: Sequence[str], wanted: Sequence[str] | None, where: str) -> None:
    """Refuses a table that lacks a wanted column or has one twice, which would make every record wrong.

    Raises:
        UserError: a column is missing or doubled; the sentence names it and the existing ones.
    """
    counts = Counter(there)
    for name in there if wanted is None else wanted:
        if name not in counts:
            raise UserError(f"{where} has no column {name!r}: set the source's fields to some of {names_of(counts)}")
        if counts[name] > 1:
            raise UserError(has_twice(where, name))


def _read_separated(
    path: Path, bad_records: BadRecords, columns: Sequence[str] | None, *, dialect: str
) -> Iterator[Record]:
    # The csv module has one limit for all readers; its default, 131072, is too small for long texts.
    csv.field_size_limit(record.MAX_RECORD_BYTES)
    with open_text(path) as (raw, stream):
        lines = _Lines(stream)
        rows = csv.reader(lines, dialect, strict=True)
        header: list[str] | None = None
        while True:
            where = f"{shown_path(path)}:{lines.number + 1}"
            lines.row_bytes = 0
            try:
                cells = next(rows)
            except StopIteration:
                break
            except _TooLong:
                bad_records.add(too_long(where))
                continue
            except csv.Error as error:
                bad_records.add(too_long(where) if "field limit" in str(error) else _not_csv(where, error))
                continue
            if not cells:
                continue
            if header is None:
                _check_columns(cells, columns, where)
                header = cells
            elif len(cells) != len(header):
                bad_records.add(f"{where} has {len(cells)} cells where the header has {len(header)}")
            else:
                fields = dict(zip(header, cells, strict=True))
                try:
                    for name in header if columns is None else columns:
                        check_text(fields[name], where)
                except RecordError as error:
                    bad_records.add(str(error))
                else:
                    yield Record(fields, where, raw.tell())


read_csv = partial(_read_separated, dialect="excel")
read_tsv = partial(_read_separated, dialect="excel-tab")


def _not_csv(where: str, error: csv.Error) -> str:
    return f"{where} is not valid CSV ({error})"


class _TooLong(Exception):
    """The row has more bytes than a record may have."""


class _Lines:
    """The lines of a stream as text for csv.reader, which can continue with it after a row that was too long.

    Bytes that are not UTF-8 become surrogates, so that only their row is bad. `number` counts the lines, and
    `row_bytes` the bytes since it was last set to 0.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pending: deque[bytes] = deque()
        self.number = 0
        self.row_bytes = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self._pending:
            block = self._stream.readline(record.MAX_RECORD_BYTES + 1)
            if not block:
                raise StopIteration
            self._pending.extend(block.splitlines(keepends=True))  # a lone carriage return ends a line, too
        line = self._pending.popleft()
        self.number += 1
        self.row_bytes += len(line)
        if self.row_bytes > record.MAX_RECORD_BYTES:
            while line and not line.endswith((b"\r", b"\n")):
                line = self._stream.readline(BLOCK_BYTES)
            raise _TooLong
        if self.number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        return line.decode(errors="surrogateescape")


def read_parquet(path: Path, bad_records: BadRecords, columns: Sequence[str] | None) -> Iterator[Record]:
    """The rows of a parquet file as records; a few rows at a time are in memory."""
    # Imported here because it takes a third of a second, and most corpora do not need it.
    import pyarrow
    from pyarrow import parquet

    with open_file(path) as (raw, stream), tempfile.TemporaryFile() as unpacked:
        if stream is not raw:  # parquet is read from its end, so a compressed file has to be unpacked first
            copyfileobj(stream, unpacked)
        size, row = path.stat().st_size, 0
        try:
            # Without pre_buffer the pages are read one by one, not a whole row group at once.
            with parquet.ParquetFile(
                raw if stream is raw else unpacked, pre_buffer=False, buffer_size=BLOCK_BYTES
            ) as table:
                _check_columns(table.schema_arrow.names, columns, f"{shown_path(path)}:1")
                rows = max(table.metadata.num_rows, 1)
                at_once = _rows_at_once(table.metadata, path)
                for batch in table.iter_batches(at_once, columns=None if columns is None else list(columns)):
                    for fields in batch.to_pylist():
                        row += 1
                        yield Record(_without_nan(fields), f"{shown_path(path)}:{row}", size * row // rows)
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            bad_records.add(f"{shown_path(path)}:{row + 1} is not readable as parquet ({reason})")


def _rows_at_once(metadata: Any, path: Path) -> int:
    """The number of rows to read at once.

    Together they may have the size of one record, if each is as large as the mean of the fullest row group. A file
    stores equal cells only once, so they must also stay within a GiB if all cells are the largest that a column holds.
    """
    most = _PARQUET_ROWS
    before = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_rows == 0:
            continue
        if group.total_byte_size > record.MAX_RECORD_BYTES * group.num_rows:
            raise RecordError(too_long(f"{shown_path(path)}:{before + 1}"))
        columns = [group.column(number).total_uncompressed_size for number in range(group.num_columns)]
        largest = min(record.MAX_RECORD_BYTES, max(columns, default=0))
        most = min(most, record.MAX_RECORD_BYTES * group.num_rows // max(group.total_byte_size, 1))
        most = max(1, min(most, _MOST_BYTES_AT_ONCE // max(largest, 1)))
        before += group.num_rows
    return most


def _without_nan(value: Any) -> Any:
    """The value with null in the place of NaN, because pandas writes a missing text as NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value

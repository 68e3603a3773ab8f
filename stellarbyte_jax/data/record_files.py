"""Reads the documents or the records of one file, whatever its format, with flat memory."""

import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj
from typing import BinaryIO

from stellarbyte.errors import UserError
from stellarbyte_jax.data.compression import BLOCK_BYTES, BROKEN_ARCHIVE, COMPRESSIONS, open_file
from stellarbyte_jax.data.documents import BadRecords, Document, RecordError, RecordText, documents_of

FORMATS = (".txt", ".md", ".py", ".jsonl", ".json", ".csv", ".parquet")

_CSV_CELL_LIMIT = 1 << 28  # characters; an unclosed quote would otherwise swallow the rest of the file
_PARQUET_ROWS = 256


def file_format(path: Path) -> str | None:
    """The suffix that says how `path` is read, without its compression; None for a format that is not supported."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


# What a record is, its file:line (parquet: the row), and the bytes of its file, as stored, read so far.
Record = tuple[object, str, int]


def read_documents(path: Path, record_text: RecordText, bad_records: BadRecords) -> Iterator[Document]:
    """Documents of a file, in order; empty ones are left out, long ones come in pieces.

    A .json file is read whole; all others stream.

    Raises:
        UserError: the file cannot be read, lacks a column, or holds a bad record that `bad_records` does not skip.
    """
    if file_format(path) not in _READERS:
        with _complaints(path, bad_records):
            yield from _read_text(path, bad_records)
        return
    for record, where, bytes_read in read_records(path, bad_records, record_text):
        try:
            text = record_text(record, where)
        except RecordError as error:
            bad_records.add(str(error))
        else:
            yield from documents_of([text], where, lambda bytes_read=bytes_read: bytes_read)  # type: ignore[misc]


def read_records(path: Path, bad_records: BadRecords, record_text: RecordText | None = None) -> Iterator[Record]:
    """Records of a file, in order; a file of text is a record with the one field "text".

    Of a table only the columns that `record_text` needs are read, or all of them.

    Raises:
        UserError: as `read_documents` says.
    """
    suffix = file_format(path)
    assert suffix is not None, path
    with _complaints(path, bad_records), open_file(path) as (raw, stream):
        if suffix in _READERS:
            yield from _READERS[suffix](path, raw, stream, record_text, bad_records)
            return
        try:
            text = "".join(_decoded_blocks(path, stream))
        except RecordError as error:
            bad_records.add(str(error))
        else:
            yield {"text": text}, f"{path}:1", raw.tell()


@contextmanager
def _complaints(path: Path, bad_records: BadRecords) -> Iterator[None]:
    """Says of a file that cannot be read which one it is."""
    try:
        yield
    except BROKEN_ARCHIVE as error:
        # What came before the damage is already out: only the rest of the file is lost.
        bad_records.add(f"{path} is a truncated or damaged {path.suffix} file ({error})")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _read_text(path: Path, bad_records: BadRecords) -> Iterator[Document]:
    # A bad file is skipped whole, so a long one is read to its end before its first piece goes out.
    head: list[str] = []
    count = 0
    with open_file(path) as (raw, stream):
        try:
            for count, block in enumerate(_decoded_blocks(path, stream), 1):
                if count <= 2:
                    head.append(block)
        except RecordError as error:
            bad_records.add(str(error))
            return
        if count <= len(head):
            yield from documents_of(head, f"{path}:1", raw.tell)
            return
    with open_file(path) as (raw, stream):
        yield from documents_of(_decoded_blocks(path, stream), f"{path}:1", raw.tell)


def _decoded_blocks(path: Path, stream: BinaryIO) -> Iterator[str]:
    """Text of a stream block by block, line ends kept, a byte-order mark left out."""
    rest, lines, first = b"", 0, True
    while True:
        block = stream.read(BLOCK_BYTES)
        data = rest + block
        if first:
            data, first = data.removeprefix(b"\xef\xbb\xbf"), False
        try:
            text, rest = data.decode(), b""
        except UnicodeDecodeError as error:
            cut_short = block and error.end == len(data) and error.reason == "unexpected end of data"
            if not cut_short:
                line = lines + data.count(b"\n", 0, error.start) + 1
                raise _not_utf8(path, line, error) from None
            text, rest = data[: error.start].decode(), data[error.start :]
        lines += text.count("\n")
        if text:
            yield text
        if not block:
            return


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> RecordError:
    return RecordError(f"{path}:{line} is not valid UTF-8 (byte 0x{error.object[error.start]:02x}, {error.reason})")


def _read_jsonl(
    path: Path,
    raw: BinaryIO,
    stream: BinaryIO,
    record_text: RecordText | None,  # noqa: ARG001 - as the other readers
    bad_records: BadRecords,
) -> Iterator[Record]:
    for number, line in enumerate(stream, 1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        try:
            record = _parse_json(line, path, number)
        except RecordError as error:
            bad_records.add(str(error))
            continue
        yield record, f"{path}:{number}", raw.tell()


def _parse_json(line: bytes, path: Path, number: int) -> object:
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise _not_utf8(path, number, error) from None
    except json.JSONDecodeError as error:
        raise RecordError(f"{path}:{number} is not valid JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError) as error:  # nested too deep; an integer of thousands of digits
        raise RecordError(f"{path}:{number} is not JSON that can be read ({error})") from None


def _read_json(
    path: Path,
    raw: BinaryIO,
    stream: BinaryIO,
    record_text: RecordText | None,  # noqa: ARG001 - as the other readers
    bad_records: BadRecords,
) -> Iterator[Record]:
    try:
        for item, line in _json_items("".join(_decoded_blocks(path, stream)), path):
            yield item, f"{path}:{line}", raw.tell()
    except RecordError as error:  # what follows a syntax error cannot be told
        bad_records.add(str(error))


def _json_items(content: str, path: Path) -> Iterator[tuple[object, int]]:
    """The items of a list, or one object, each with the line it starts on."""
    decoder = json.JSONDecoder()
    at, counted, line = 0, 0, 1

    def skip_space() -> str:
        nonlocal at, counted, line
        while content[at : at + 1] in (" ", "\t", "\r", "\n") and at < len(content):
            at += 1
        line += content.count("\n", counted, at)
        counted = at
        return content[at : at + 1]

    def parse() -> object:
        nonlocal at
        try:
            item, at = decoder.raw_decode(content, at)
        except json.JSONDecodeError as error:
            raise RecordError(
                f"{path}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno})"
            ) from None
        except (RecursionError, ValueError) as error:
            raise RecordError(f"{path}:{line} is not JSON that can be read ({error})") from None
        return item

    def expect(*signs: str) -> str:
        nonlocal at
        found = skip_space()
        if found not in signs:
            name = repr(found) if found else "the end of the file"
            raise RecordError(f"{path}:{line} is not valid JSON (expected {' or '.join(signs)}, found {name})")
        at += 1
        return found

    if skip_space() != "[":
        start = line
        yield parse(), start
    else:
        at += 1
        if skip_space() == "]":
            at += 1
        else:
            while True:
                skip_space()
                start = line
                yield parse(), start
                if expect(",", "]") == "]":
                    break
    if skip_space():
        raise RecordError(f"{path}:{line} is not valid JSON (text after the end of the value)")


def _read_csv(
    path: Path, raw: BinaryIO, stream: BinaryIO, record_text: RecordText | None, bad_records: BadRecords
) -> Iterator[Record]:
    csv.field_size_limit(_CSV_CELL_LIMIT)  # the module has one limit for all; its default of 131072 is short of a page
    lines = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(lines, strict=True)
    header: list[str] | None = None
    while True:
        where = f"{path}:{rows.line_num + 1}"
        try:
            cells = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            bad_records.add(f"{where} is not valid CSV ({error})")
            continue
        if not cells:
            continue
        if header is None:
            header = cells
            if record_text is not None:
                record_text.check_columns(header, str(path))
        elif len(cells) != len(header):
            bad_records.add(f"{where} has {len(cells)} cells where the header has {len(header)}")
        else:
            yield dict(zip(header, cells, strict=True)), where, raw.tell()


def _read_parquet(
    path: Path, raw: BinaryIO, stream: BinaryIO, record_text: RecordText | None, bad_records: BadRecords
) -> Iterator[Record]:
    # Imported here, for it takes a third of a second and most corpora need none of it.
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as unpacked:
        if stream is not raw:  # parquet is read from its end: a compressed one has to be unpacked first
            copyfileobj(stream, unpacked)
        size, row = path.stat().st_size, 0
        try:
            table = parquet.ParquetFile(raw if stream is raw else unpacked)
            columns = None
            if record_text is not None:
                record_text.check_columns(table.schema_arrow.names, str(path))
                columns = list(record_text.fields)
            rows = max(table.metadata.num_rows, 1)
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield record, f"{path}:{row}", size * row // rows
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            bad_records.add(f"{path}:{row + 1} is not readable as parquet ({reason})")


_Reader = Callable[[Path, BinaryIO, BinaryIO, RecordText | None, BadRecords], Iterator[Record]]

_READERS: dict[str, _Reader] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}

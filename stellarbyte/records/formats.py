"""Lists the formats of data files, and reads the records of a file in any of them, with bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from stellarbyte.errors import UserError, shown_path
from stellarbyte.records import record
from stellarbyte.records.bad_records import BadRecords, RecordError, kind_of
from stellarbyte.records.compression import COMPRESSIONS, BrokenArchive
from stellarbyte.records.json_records import read_json, read_jsonl
from stellarbyte.records.record import Record, too_long
from stellarbyte.records.tables import read_csv, read_parquet, read_tsv
from stellarbyte.records.text import decoded_blocks, open_text

TEXT_FORMATS = (".txt", ".md", ".py")

_Reader = Callable[[Path, BadRecords, Sequence[str] | None], Iterator[Record]]

_READERS: dict[str, _Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
FORMATS = (*TEXT_FORMATS, *_READERS)
SUPPORTED = f"use {' '.join(FORMATS)}, each also with {' '.join(COMPRESSIONS)}"


def file_format(path: Path) -> str | None:
    """The suffix of `path` that decides how it is read, without a compression's; None for an unsupported format."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def can_be_split(path: Path) -> bool:
    """Whether a part of the file can be read alone: it is not compressed, and has one record a line."""
    return path.suffix.lower() in (".jsonl", ".ndjson")


def read_records(
    path: Path, bad_records: BadRecords, columns: Sequence[str] | None = None, span: range | None = None
) -> Iterator[Record]:
    """The records of a file, in order; a text file is a single record with one field, "text".

    Memory is bounded, whatever the file holds. A NaN in the place of a text becomes null. columns: the only columns of
    a table that are read; None for all. span: of a file that `can_be_split`, the bytes in which the records begin.

    Raises:
        UserError: the file cannot be read, lacks a column, or holds a bad record that `bad_records` does not skip.
    """
    suffix = file_format(path)
    assert suffix is not None, path
    # What is wrong with a file as a whole is told with its beginning.
    with complaints(path, bad_records if span is None or not span.start else BadRecords("skip")):
        if suffix in TEXT_FORMATS:
            yield _whole_text(path)
            return
        reader = _READERS[suffix] if span is None else partial(read_jsonl, span=span)
        for found in reader(path, bad_records, columns):
            if isinstance(found.fields, dict):
                yield found
            else:
                bad_records.add(f"{found.where} is not a JSON object but {kind_of(found.fields)}")


@contextmanager
def complaints(path: Path, bad_records: BadRecords) -> Iterator[None]:
    """Turns errors of reading a file into sentences that name it; the records before the error are yielded already."""
    try:
        yield
    except RecordError as error:
        bad_records.add(str(error))
    except BrokenArchive as error:
        bad_records.add(f"{shown_path(path)} is a truncated or damaged {path.suffix.lower()} file ({error})")
    except OSError as error:
        raise UserError(f"{shown_path(path)} cannot be read: {error.strerror or error}") from None


def _whole_text(path: Path) -> Record:
    blocks: list[str] = []
    size = 0
    with open_text(path) as (raw, stream):
        for block in decoded_blocks(path, stream):
            blocks.append(block)
            size += len(block)
            if size > record.MAX_RECORD_BYTES:
                raise RecordError(too_long(f"{shown_path(path)}:1"))
        return Record({"text": "".join(blocks)}, f"{shown_path(path)}:1", raw.tell())

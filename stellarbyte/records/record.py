"""Defines a record, and how long it may be."""

from typing import Any, NamedTuple

# Far longer than any text that a model sees at once, and small compared with a machine's memory.
MAX_RECORD_BYTES = 64 << 20


class Record(NamedTuple):
    """A record as its file has it: an object of fields, or another JSON value that stands in its place.

    `where` is its file:line (in parquet the row); `bytes_read` is the number of stored bytes of the file read so far.
    """

    fields: Any
    where: str
    bytes_read: int


def too_long(where: str) -> str:
    """The complaint about a record at `where` that is longer than MAX_RECORD_BYTES."""
    return f"{where} is a record of more than {MAX_RECORD_BYTES >> 20} MiB, the most that is read: cut it into several"


def has_twice(where: str, name: str) -> str:
    """The complaint about a record or a table's header at `where` that has a field twice."""
    return f"{where} has the field {name!r} twice: rename one of them"

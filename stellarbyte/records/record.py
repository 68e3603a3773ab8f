"""What a record is, and how long it may be."""

from typing import Any, NamedTuple

# Far beyond any text that a model sees at once, and small beside a machine's memory.
MAX_RECORD_BYTES = 64 << 20


class Record(NamedTuple):
    """A record as it stands in its file: an object of fields, or what a line of JSON has in place of one.

    `where` is its file:line (parquet: the row); `bytes_read` counts the bytes of its file, as stored, read so far.
    """

    fields: Any
    where: str
    bytes_read: int


def too_long(where: str) -> str:
    """The complaint about a record at `where` that is longer."""
    return f"{where} is a record of more than {MAX_RECORD_BYTES >> 20} MiB, the most that is read: cut it into several"


def has_twice(where: str, name: str) -> str:
    """The complaint about a record, or a table's header, at `where` that has a field twice."""
    return f"{where} has the field {name!r} twice: rename one of them"

"""What the tables of a store ask of a database: statements in a dialect that SQLite and PostgreSQL share."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = tuple[Any, ...]

# SQLite takes 32,766 parameters, and PostgreSQL 65,535.
_AT_ONCE = 500


class Connection(Protocol):
    """A connection to a store. Parameters stand as ? in statements.

    Attributes:
        name: the store, as sentences name it.
        read_only: whether nothing can be written.
    """

    name: str
    read_only: bool

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows that a statement gives. Raises UserError with a sentence for whatever the database refuses."""

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each row of parameters."""

    def writing(self) -> AbstractContextManager[None]:
        """A transaction of a store's only writer; it is whole on disk at the end, or has not happened."""

    def reading(self) -> AbstractContextManager[None]:
        """A transaction that sees the store as it is at one moment. Inside `writing` it is part of that."""

    def scrub(self) -> None:
        """Removes what transactions have deleted from the store's files, as far as the database lets us."""

    def compact(self) -> None:
        """Gives the room of what was deleted back to the system."""

    def size(self) -> int:
        """The bytes that the store takes."""

    def close(self) -> None:
        """Ends the connection."""


def marks(values: Sequence[Any]) -> str:
    """A mark in a statement for each value."""
    return ", ".join("?" * len(values))


def chunks(values: Sequence[Any]) -> Iterable[list[Any]]:
    """The values in lists of as many as one statement may have marks for."""
    return (list(values[first : first + _AT_ONCE]) for first in range(0, len(values), _AT_ONCE))

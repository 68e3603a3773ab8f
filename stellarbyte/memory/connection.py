"""What the tables of a store ask of a database: statements in a dialect that SQLite and PostgreSQL share."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = tuple[Any, ...]


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

    def run(self, statement: str, parameters: Sequence[Any] = ()) -> None:
        """Runs a statement that gives no rows; within a transaction an error may be told by a later call."""

    def many(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Runs a statement once for each row of parameters; errors are told as by `run`."""

    def bulk(self, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
        """Adds rows to a table, as fast as the database takes them, within a transaction that writes."""

    def new_ids(self, count: int) -> list[int]:
        """Ids that no entry has had, in ascending order, for the transaction that writes."""

    def among(self, column: str, values: Sequence[int] | Sequence[str]) -> tuple[str, list[Any]]:
        """A condition for WHERE that a column has one of these values, and its parameters."""

    def looked_up(self, table: str, key: str) -> str:
        """A CROSS JOIN with the rows of a table that have this key, each looked up by it whatever the database expects.

        key: the condition, on columns of the joined tables and of `w`, which the rows are called.
        """

    def each(self, values: Sequence[int]) -> tuple[str, list[Any]]:
        """A table `i` whose column `value` has these values, and its parameters."""

    def writing(self) -> AbstractContextManager[None]:
        """A transaction of a store's only writer; it is whole on disk at the end, or has not happened."""

    def reading(self) -> AbstractContextManager[None]:
        """A transaction that sees the store as it is at one moment. Inside `writing` it is part of that."""

    def scrub(self) -> None:
        """Removes what transactions have deleted from the store's files, as far as the database lets us."""

    def compact(self) -> None:
        """Gives the room of what was deleted back to the system."""

    def settle(self) -> None:
        """Tells the database that much was added, outside of a transaction; it plans its statements accordingly."""

    def size(self) -> int:
        """The bytes that the store takes."""

    def close(self) -> None:
        """Ends the connection."""


def marks(values: Sequence[Any]) -> str:
    """A mark in a statement for each value."""
    return ", ".join("?" * len(values))

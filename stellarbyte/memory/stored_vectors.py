"""Reads the vectors of a user's entries from a store, and fits their whitening."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from stellarbyte.memory.connection import Connection
from stellarbyte.memory.half_vectors import from_binary
from stellarbyte.memory.postgres import PostgresDatabase
from stellarbyte.memory.whitening import Whitening, fit_whitening, rows_to_fit

# Vectors that are read at once, so that what is made of them stays small.
_BATCH = 10_000


class State(NamedTuple):
    """How far a user's vectors go.

    Attributes:
        epoch: what changes whenever all of them must be read anew.
        entries: their number; nearly all of them have one.
        change: the end of the list of changes.
    """

    epoch: str
    entries: int
    change: int


class Vectors(NamedTuple):
    """The ids of N entries, and their vectors (N, D) in float16."""

    ids: list[int]
    vectors: np.ndarray


class StoredVectors:
    """The vectors of one user, which the store keeps in float16.

    size: the length of a vector.
    """

    def __init__(self, connection: Connection, owner: str, size: int) -> None:
        self.size, self.reading = size, connection.reading
        self._connection, self._owner = connection, owner
        self._binary = isinstance(connection, PostgresDatabase)

    def state(self) -> State:
        """How far they go at this moment."""
        ((epoch, entries, change),) = self._connection.rows(
            "SELECT (SELECT value FROM meta WHERE key = 'epoch'), (SELECT entries FROM totals WHERE owner = ?), "
            "(SELECT MAX(id) FROM changes)",
            (self._owner,),
        )
        return State(epoch, entries or 0, change or 0)

    def changed_since(self, change: int) -> list[int]:
        """The entries, of any user, whose vectors may have changed since the list of changes went so far."""
        rows = self._connection.rows("SELECT DISTINCT memory FROM changes WHERE id > ? ORDER BY memory", (change,))
        return [memory for (memory,) in rows]

    def of(self, ids: Sequence[int]) -> Vectors:
        """Those of these entries that have one."""
        condition, values = self._connection.among("memory", ids)
        return self._read(f"AND {condition} ORDER BY memory", values)

    def nearest(self, distance: str, vectors: Sequence[np.ndarray], limit: int) -> Vectors:
        """Those of the least distance, which pgvector works out of the column `vector` and these vectors, (D,)."""
        return self._read(f"ORDER BY {distance}, memory LIMIT ?", [*map(self.to_column, vectors), limit])

    def batches(self) -> Iterator[Vectors]:
        """All of them, ordered by their entries; to be read within a transaction."""
        last = 0
        while (some := self._read("AND memory > ? ORDER BY memory LIMIT ?", [last, _BATCH])).ids:
            last = some.ids[-1]
            yield some

    def fitted(self, count: int, *, directions: bool) -> Whitening:
        """The whitening of a sample of about `count` vectors; see fit_whitening."""
        each = max(1, -(-count // rows_to_fit(self.size)))
        sample = self._read("AND memory % ? = 0 ORDER BY memory", [each]).vectors
        return fit_whitening(sample, count, directions=directions)

    def to_column(self, vector: np.ndarray) -> object:
        """A vector as the store's column takes it; what float16 cannot hold becomes its largest number."""
        most = np.finfo(np.float16).max
        halves = np.clip(np.nan_to_num(vector), -most, most).astype("<f2")
        return halves if self._binary else halves.tobytes()

    def _read(self, condition: str, parameters: Sequence[Any]) -> Vectors:
        statement = f"SELECT memory, vector FROM vectors WHERE owner = ? {condition}"
        rows = self._connection.rows(statement, [self._owner, *parameters])
        columns = [vector for _, vector in rows]
        if self._binary:
            vectors = from_binary(columns, self.size)
        else:
            vectors = np.frombuffer(b"".join(columns), "<f2").reshape(len(columns), self.size)
        return Vectors([number for number, _ in rows], vectors)


class FollowedWhitening:
    """The whitening of a user's vectors, which is fitted anew when their number has changed by a quarter.

    whitened: see Embedder.
    """

    def __init__(self, stored: StoredVectors, *, whitened: bool) -> None:
        self._stored, self._whitened = stored, whitened
        self._fitted: Whitening | None = None
        self._epoch = ""

    def now(self, state: State) -> Whitening:
        """The one for a store in this state; the same object as long as it stays."""
        if self._fitted is None or state.epoch != self._epoch or not self._fitted.suits(state.entries):
            self._fitted, self._epoch = self._stored.fitted(state.entries, directions=self._whitened), state.epoch
        return self._fitted


def compared(whitening: Whitening, vector: np.ndarray, found: Vectors) -> list[tuple[int, float]]:
    """Ids, and the cosines of their vectors with another one."""
    cosines = whitening(found.vectors) @ whitening(vector[None])[0]
    return list(zip(found.ids, cosines.tolist(), strict=True))

"""Finds the nearest vectors of a user's entries, exactly, in a matrix that follows the store."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stellarbyte.memory.connection import Connection, chunks, marks
from stellarbyte.memory.matrix import Matrix, new_matrix
from stellarbyte.memory.whitening import Whitening, fit_whitening


class Nearest(Protocol):
    """Finds the entries that are nearest to a vector."""

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """For each of `vectors` (Q, D), as an embedder gives them, ids and cosines of the nearest, the best first."""

    def cosines(self, vector: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
        """The cosines of a vector (D,) with those of the user's entries that have one."""

    def to_column(self, vector: np.ndarray) -> object:
        """A vector as the store's column takes it."""


class VectorsInMemory:
    """The whitened vectors of one user, read from the store, and brought up to date before each search.

    size: the length of a vector.
    whitened: see Embedder.
    """

    def __init__(self, connection: Connection, owner: str, size: int, *, whitened: bool) -> None:
        self._connection, self._owner, self._size, self._whitened = connection, owner, size, whitened
        self._epoch: str | None = None
        self._seen = 0
        self._matrix: Matrix | None = None
        self._whitening: Whitening | None = None

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Nearest."""
        self._follow()
        assert self._matrix is not None and self._whitening is not None
        if not len(self._matrix):
            return [[] for _ in vectors]
        return self._matrix.search(self._whitening(vectors), limit)

    def cosines(self, vector: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
        """See Nearest; as the last search has found the store."""
        assert self._matrix is not None and self._whitening is not None
        return self._matrix.products(self._whitening(vector[None])[0], ids)

    def to_column(self, vector: np.ndarray) -> bytes:
        """A vector as the store keeps it: float16, little-endian."""
        return to_bytes(vector)

    def _follow(self) -> None:
        """Reads what has changed since; all of it at first, and when the number of vectors has changed by a quarter."""
        epochs = self._connection.rows("SELECT value FROM meta WHERE key = 'epoch'")
        if self._matrix is None or self._epoch != epochs[0][0]:
            self._load()
            return
        changes = self._connection.rows("SELECT id, memory FROM changes WHERE id > ? ORDER BY id", (self._seen,))
        if not changes:
            return
        assert self._whitening is not None
        if len(changes) > max(64, self._whitening.rows):
            self._load()
            return
        ids = sorted({memory for _, memory in changes})
        self._matrix.remove(ids)
        self._put(ids, self._whitening)
        self._seen = changes[-1][0]
        if not self._whitening.suits(len(self._matrix)):
            self._load()

    def _load(self) -> None:
        with self._connection.reading():
            ((self._epoch,),) = self._connection.rows("SELECT value FROM meta WHERE key = 'epoch'")
            ((self._seen,),) = self._connection.rows("SELECT COALESCE(MAX(id), 0) FROM changes")
            statement = "SELECT memory, vector FROM vectors WHERE owner = ? ORDER BY memory"
            rows = self._connection.rows(statement, (self._owner,))
        raw = from_bytes([vector for _, vector in rows], self._size)
        self._whitening = fit_whitening(raw, directions=self._whitened)
        self._matrix = new_matrix(len(rows), self._size)
        for first in range(0, len(rows), 10_000):  # so that the float32 copies stay small
            some = slice(first, first + 10_000)
            self._matrix.add([number for number, _ in rows[some]], self._whitening(raw[some]))

    def _put(self, ids: Sequence[int], whitening: Whitening) -> None:
        assert self._matrix is not None
        for some in chunks(ids):
            wanted = marks(some)
            statement = f"SELECT memory, vector FROM vectors WHERE owner = ? AND memory IN ({wanted}) ORDER BY memory"
            rows = self._connection.rows(statement, [self._owner, *some])
            raw = from_bytes([vector for _, vector in rows], self._size)
            self._matrix.add([number for number, _ in rows], whitening(raw))


def to_bytes(vector: np.ndarray) -> bytes:
    """A vector in float16, little-endian; what float16 cannot hold becomes its largest number."""
    most = np.finfo(np.float16).max
    return np.clip(np.nan_to_num(vector), -most, most).astype("<f2").tobytes()


def from_bytes(vectors: Sequence[bytes], size: int) -> np.ndarray:
    """The vectors, (N, size) in float16."""
    return np.frombuffer(b"".join(vectors), "<f2").reshape(len(vectors), size)

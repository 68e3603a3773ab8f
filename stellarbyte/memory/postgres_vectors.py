"""Finds the nearest vectors of a user's entries in PostgreSQL, which holds them."""

from collections.abc import Sequence

import numpy as np

from stellarbyte.memory.connection import Connection, Row, chunks, marks
from stellarbyte.memory.whitening import MOST_ROWS, Whitening, fit_whitening

# What pgvector finds for each result: it orders by the cosine of centred vectors, and the whitened ones are close.
_CANDIDATES = 10


class VectorsInPostgres:
    """The vectors of one user: pgvector finds candidates exactly, and whitened cosines order them.

    size: the length of a vector.
    whitened: see Embedder.
    """

    def __init__(self, connection: Connection, owner: str, size: int, *, whitened: bool) -> None:
        self._connection, self._owner, self._size, self._whitened = connection, owner, size, whitened
        self._whitening: Whitening | None = None
        self._epoch = ""

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Nearest."""
        whitening = self._fitted()
        return [self._nearest(whitening, vector, limit) for vector in vectors]

    def cosines(self, vector: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
        """See Nearest."""
        whitening = self._fitted()
        found: dict[int, float] = {}
        for some in chunks(ids):
            statement = (
                f"SELECT memory, CAST(vector AS TEXT) FROM vectors WHERE owner = ? AND memory IN ({marks(some)})"
            )
            found.update(_compared(whitening, vector, self._connection.rows(statement, [self._owner, *some])))
        return found

    def _nearest(self, whitening: Whitening, vector: np.ndarray, limit: int) -> list[tuple[int, float]]:
        mean, query = (_to_text(one) for one in (whitening.mean, vector - whitening.mean))
        rows = self._connection.rows(
            "SELECT memory, CAST(vector AS TEXT) FROM vectors WHERE owner = ? "
            "ORDER BY (vector - CAST(? AS halfvec)) <=> CAST(? AS halfvec), memory LIMIT ?",
            (self._owner, mean, query, (_CANDIDATES if self._whitened else 1) * limit),
        )
        return sorted(_compared(whitening, vector, rows), key=lambda pair: (-pair[1], pair[0]))[:limit]

    def to_column(self, vector: np.ndarray) -> str:
        """A vector as pgvector reads it."""
        return _to_text(vector)

    def _fitted(self) -> Whitening:
        """The whitening of a sample; it is fitted anew when their number has changed by a quarter."""
        ((epoch,),) = self._connection.rows("SELECT value FROM meta WHERE key = 'epoch'")
        counts = self._connection.rows("SELECT entries FROM totals WHERE owner = ?", (self._owner,))
        count = int(counts[0][0]) if counts else 0
        old = self._whitening
        if old is None or epoch != self._epoch or not old.suits(count):
            rows = self._connection.rows(
                "SELECT CAST(vector AS TEXT) FROM vectors WHERE owner = ? AND memory % ? = 0 ORDER BY memory".replace(
                    "%", "%%"
                ),
                (self._owner, 1 + count // MOST_ROWS),
            )
            sample = np.array([_from_text(text) for (text,) in rows], np.float32).reshape(len(rows), self._size)
            fitted = fit_whitening(sample, directions=self._whitened)
            self._whitening, self._epoch = fitted._replace(rows=count), epoch
        assert self._whitening is not None
        return self._whitening


def _compared(whitening: Whitening, vector: np.ndarray, rows: Sequence[Row]) -> list[tuple[int, float]]:
    """The ids of rows, and the cosines of their vectors with another one."""
    if not rows:
        return []
    cosines = whitening(np.stack([_from_text(text) for _, text in rows])) @ whitening(vector[None])[0]
    return [(int(memory), float(cosine)) for (memory, _), cosine in zip(rows, cosines, strict=True)]


def _to_text(vector: np.ndarray) -> str:
    most = float(np.finfo(np.float16).max)
    return "[" + ",".join(f"{value:.5g}" for value in np.clip(np.nan_to_num(vector), -most, most)) + "]"


def _from_text(text: str) -> np.ndarray:
    return np.fromstring(text[1:-1], np.float32, sep=",")

"""Finds the nearest vectors of a user's entries in PostgreSQL, which holds them."""

import numpy as np

from stellarbyte.memory.connection import Connection
from stellarbyte.memory.whitening import MOST_ROWS, Whitening, fit_whitening

# What pgvector finds for each result: it orders by the cosine of centred vectors, and the whitened ones are close.
_CANDIDATES = 10


class VectorsInPostgres:
    """The vectors of one user: pgvector finds candidates exactly, and whitened cosines order them.

    size: the length of a vector.
    """

    def __init__(self, connection: Connection, owner: str, size: int) -> None:
        self._connection, self._owner, self._size = connection, owner, size
        self._whitening: Whitening | None = None
        self._epoch = ""

    def search(self, vector: np.ndarray, limit: int) -> list[tuple[int, float]]:
        """Ids and cosines of the nearest entries, the best first."""
        whitening = self._fitted()
        mean, query = (_to_text(one) for one in (whitening.mean, vector - whitening.mean))
        rows = self._connection.rows(
            "SELECT memory, CAST(vector AS TEXT) FROM vectors WHERE owner = ? "
            "ORDER BY (vector - CAST(? AS halfvec)) <=> CAST(? AS halfvec), memory LIMIT ?",
            (self._owner, mean, query, _CANDIDATES * limit),
        )
        if not rows:
            return []
        found = whitening(np.stack([_from_text(text) for _, text in rows]))
        cosines = found @ whitening(vector[None])[0]
        pairs = [(int(memory), float(cosine)) for (memory, _), cosine in zip(rows, cosines, strict=True)]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:limit]

    def to_column(self, vector: np.ndarray) -> str:
        """A vector as pgvector reads it."""
        return _to_text(vector)

    def _fitted(self) -> Whitening:
        """The whitening of a sample; it is fitted anew when there are twice or half as many vectors."""
        ((epoch,),) = self._connection.rows("SELECT value FROM meta WHERE key = 'epoch'")
        ((count,),) = self._connection.rows("SELECT COUNT(*) FROM vectors WHERE owner = ?", (self._owner,))
        old = self._whitening
        if old is None or epoch != self._epoch or not old.rows // 2 <= count <= 2 * old.rows:
            rows = self._connection.rows(
                "SELECT CAST(vector AS TEXT) FROM vectors WHERE owner = ? AND memory % ? = 0 ORDER BY memory".replace(
                    "%", "%%"
                ),
                (self._owner, 1 + count // MOST_ROWS),
            )
            sample = np.array([_from_text(text) for (text,) in rows], np.float32).reshape(len(rows), self._size)
            self._whitening, self._epoch = fit_whitening(sample)._replace(rows=count), epoch
        assert self._whitening is not None
        return self._whitening


def _to_text(vector: np.ndarray) -> str:
    most = float(np.finfo(np.float16).max)
    return "[" + ",".join(f"{value:.5g}" for value in np.clip(np.nan_to_num(vector), -most, most)) + "]"


def _from_text(text: str) -> np.ndarray:
    return np.fromstring(text[1:-1], np.float32, sep=",")

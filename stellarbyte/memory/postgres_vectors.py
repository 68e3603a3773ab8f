"""Finds the nearest vectors of a user's entries in PostgreSQL, which holds them."""

import numpy as np

from stellarbyte.memory.blas_threads import one_thread
from stellarbyte.memory.matrix import best_of
from stellarbyte.memory.stored_vectors import StoredVectors, compared
from stellarbyte.memory.vectors import Nearest
from stellarbyte.memory.whitening import Whitening

# What pgvector finds for each result where vectors are whitened: it orders by products, not by cosines.
_CANDIDATES = 10
# From so many queries on all vectors are read once, instead of being searched for each of them by the server.
_MANY = 8


class VectorsInPostgres(Nearest):
    """The vectors of one user: pgvector finds candidates among all of them, and their cosines order these.

    whitened: see Embedder.
    """

    def __init__(self, stored: StoredVectors, *, whitened: bool) -> None:
        super().__init__(stored, whitened=whitened)
        self._whitened = whitened

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Nearest."""
        with self._stored.reading():
            whitening = self._whitening.now(self._stored.state())
            if len(vectors) < _MANY:
                return [self._nearest(whitening, vector, limit) for vector in vectors]
            found: list[list[tuple[int, float]]] = [[] for _ in vectors]
            queries = whitening(vectors)
            for ids, some in self._stored.batches():
                with one_thread():
                    products = queries @ whitening(some).T
                found = [
                    sorted(old + new, key=_order)[:limit]
                    for old, new in zip(found, best_of(np.array(ids), products, limit), strict=True)
                ]
        return found

    def _nearest(self, whitening: Whitening, vector: np.ndarray, limit: int) -> list[tuple[int, float]]:
        if self._whitened:
            found = self._stored.nearest("vector <#> ?", [whitening.direction(vector)], _CANDIDATES * limit)
        else:
            moved = [whitening.mean, vector - whitening.mean]
            found = self._stored.nearest("(vector - ?) <=> ?", moved, limit)
        return sorted(compared(whitening, vector, found), key=_order)[:limit]


def _order(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]

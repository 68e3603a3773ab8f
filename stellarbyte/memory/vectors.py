"""Finds the nearest vectors of a user's entries, exactly, in a matrix that follows the store."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from stellarbyte.memory.matrix import Matrix, new_matrix
from stellarbyte.memory.stored_vectors import FollowedWhitening, StoredVectors, compared
from stellarbyte.memory.whitening import Whitening


class Nearest(ABC):
    """Finds the entries of a user that are nearest to a vector.

    whitened: see Embedder.
    """

    def __init__(self, stored: StoredVectors, *, whitened: bool) -> None:
        self._stored, self._whitening = stored, FollowedWhitening(stored, whitened=whitened)

    @abstractmethod
    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """For each of `vectors` (Q, D), as an embedder gives them, ids and cosines of the nearest, the best first."""

    def cosines(self, vector: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
        """The cosines of a vector (D,) with those of the user's entries that have one."""
        return dict(compared(self._whitening.now(self._stored.state()), vector, self._stored.of(ids)))

    def to_column(self, vector: np.ndarray) -> object:
        """A vector as the store's column takes it."""
        return self._stored.to_column(vector)


class VectorsInMemory(Nearest):
    """The whitened vectors of one user, read from the store by the first search, and brought up to date by the others.

    whitened: see Embedder.
    """

    def __init__(self, stored: StoredVectors, *, whitened: bool) -> None:
        super().__init__(stored, whitened=whitened)
        self._of: Whitening | None = None
        self._seen = 0
        self._matrix: Matrix | None = None

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Nearest."""
        matrix, whitening = self._followed()
        return matrix.search(whitening(vectors), limit) if len(matrix) else [[] for _ in vectors]

    def _followed(self) -> tuple[Matrix, Whitening]:
        """The matrix as the store is now, and the whitening of its vectors."""
        state = self._stored.state()
        whitening = self._whitening.now(state)
        if self._matrix is None or whitening is not self._of:
            return self._loaded(), whitening
        if state.change != self._seen:
            ids = self._stored.changed_since(self._seen)
            if len(ids) > max(64, whitening.rows):
                return self._loaded(), whitening
            self._matrix.remove(ids)
            there, vectors = self._stored.of(ids)
            self._matrix.add(there, whitening(vectors))
            self._seen = state.change
        return self._matrix, whitening

    def _loaded(self) -> Matrix:
        """A matrix of all vectors."""
        self._matrix = None  # so that there are never two
        with self._stored.reading():
            state = self._stored.state()
            whitening = self._whitening.now(state)
            matrix = new_matrix(state.entries, self._stored.size)
            for ids, vectors in self._stored.batches():
                matrix.add(ids, whitening(vectors))
        self._matrix, self._of, self._seen = matrix, whitening, state.change
        return matrix

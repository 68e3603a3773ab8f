"""Vectors of length 1 that are searched exactly: in NumPy, and from FAISS_FROM on with faiss."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stellarbyte.memory.blas_threads import one_thread

FAISS_FROM = 200_000
# Queries whose products with all vectors are held at once.
_QUERIES = 16


class Matrix(Protocol):
    """Vectors by id."""

    def __len__(self) -> int:
        """The number of vectors."""

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Adds (N, D) vectors, none of whose ids is there."""

    def remove(self, ids: Sequence[int]) -> None:
        """Removes vectors; ids that are not there are passed over."""

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """For each of `vectors` (Q, D) the ids and inner products of the nearest, the best first; equals by id."""


def new_matrix(count: int, size: int) -> Matrix:
    """An empty matrix that suits so many vectors. Raises UserError: they need faiss, which is not installed."""
    if count < FAISS_FROM:
        return NumpyMatrix(size, count)
    from stellarbyte.memory.faiss_matrix import FaissMatrix

    return FaissMatrix(size, count)


class NumpyMatrix:
    """Rows of an array, of which a removed one is filled with the last."""

    def __init__(self, size: int, room: int) -> None:
        # Rows that nothing was written to take no memory.
        self._rows = np.empty((max(room * 9 // 8, 64), size), np.float32)
        self._ids = np.empty(len(self._rows), np.int64)
        self._places: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._places)

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Adds (N, D) vectors, none of whose ids is there."""
        first, needed = len(self), len(self) + len(ids)
        if needed > len(self._rows):
            room = max(needed, len(self._rows) * 3 // 2)
            self._rows = np.concatenate([self._rows[:first], np.empty((room - first, self._rows.shape[1]), np.float32)])
            self._ids = np.concatenate([self._ids[:first], np.empty(room - first, np.int64)])
        self._rows[first:needed], self._ids[first:needed] = vectors, ids
        self._places.update(zip(ids, range(first, needed), strict=True))

    def remove(self, ids: Sequence[int]) -> None:
        """Removes vectors; ids that are not there are passed over."""
        for number in ids:
            place = self._places.pop(number, None)
            if place is None:
                continue
            last = len(self._places)
            if place != last:
                self._rows[place], self._ids[place] = self._rows[last], self._ids[last]
                self._places[int(self._ids[place])] = place
            self._rows[last] = 0  # what is deleted is gone from memory too

    @one_thread()
    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Matrix."""
        count, found = len(self), []
        for first in range(0, len(vectors), _QUERIES):
            products = vectors[first : first + _QUERIES] @ self._rows[:count].T
            found += best_of(self._ids[:count], products, limit)
        return found


def best_of(ids: np.ndarray, products: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
    """For each row of `products` (Q, N) the ids, (N,), and values of the highest, the best first; equals by id."""
    found = []
    for row in products:
        best = np.argpartition(row, len(row) - limit)[len(row) - limit :] if limit < len(row) else np.arange(len(row))
        order = best[np.lexsort((ids[best], -row[best]))]
        found.append(list(zip(ids[order].tolist(), row[order].tolist(), strict=True)))
    return found

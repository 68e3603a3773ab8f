"""Vectors of length 1 that are searched exactly: in NumPy, and from FAISS_FROM on in a flat index of faiss."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol, cast

import numpy as np

from stellarbyte.errors import UserError

FAISS_FROM = 200_000


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

    def products(self, vector: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
        """The inner products of `vector` (D,) with those of the ids that are there."""


def new_matrix(count: int, size: int) -> Matrix:
    """An empty matrix that suits so many vectors. Raises UserError: they need faiss, which is not installed."""
    if count < FAISS_FROM:
        return NumpyMatrix(size, count)
    return FaissMatrix(size)


class NumpyMatrix:
    """Rows of an array, of which a removed one is filled with the last."""

    def __init__(self, size: int, room: int) -> None:
        self._rows = np.empty((max(room, 64), size), np.float32)
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

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Matrix."""
        count, found = len(self), []
        for vector in vectors:
            products = self._rows[:count] @ vector
            best = np.argpartition(products, count - limit)[count - limit :] if limit < count else np.arange(count)
            order = best[np.lexsort((self._ids[best], -products[best]))]
            found.append([(int(self._ids[place]), float(products[place])) for place in order])
        return found

    def products(self, vector: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
        """See Matrix."""
        places = {number: self._places[number] for number in ids if number in self._places}
        return dict(zip(places, (self._rows[list(places.values())] @ vector).tolist(), strict=True))


class FaissMatrix:
    """faiss's flat index of inner products, whose deletions are exact."""

    def __init__(self, size: int) -> None:
        try:
            import faiss
        except ModuleNotFoundError as error:
            raise UserError(
                f"a memory of {FAISS_FROM:,} vectors or more needs faiss, which is not installed: "
                "pip install 'stellarbyte[memory]'"
            ) from error
        self._index: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(size))

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Adds (N, D) vectors, none of whose ids is there."""
        if len(ids):
            self._index.add_with_ids(np.ascontiguousarray(vectors, np.float32), np.asarray(ids, np.int64))

    def remove(self, ids: Sequence[int]) -> None:
        """Removes vectors; ids that are not there are passed over."""
        there = [number for number in ids if self._vector(number) is not None]
        if there:  # faiss goes through all its rows
            self._index.remove_ids(np.asarray(there, np.int64))

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Matrix."""
        found = []
        for products, ids in zip(*self._index.search(np.ascontiguousarray(vectors, np.float32), limit), strict=True):
            pairs = [(int(number), float(value)) for number, value in zip(ids, products, strict=True) if number >= 0]
            found.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))
        return found

    def products(self, vector: np.ndarray, ids: Sequence[int]) -> dict[int, float]:
        """See Matrix."""
        found = ((number, self._vector(number)) for number in ids)
        return {number: float(one @ vector) for number, one in found if one is not None}

    def _vector(self, number: int) -> np.ndarray | None:
        with suppress(RuntimeError):  # it is not there
            return cast("np.ndarray", self._index.reconstruct(number))
        return None

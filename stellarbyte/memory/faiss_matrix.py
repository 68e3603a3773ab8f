"""Very many vectors of length 1, searched exactly in a quarter of the time that reading them takes."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.memory.blas_threads import one_thread
from stellarbyte.memory.matrix import FAISS_FROM, best_of

# What faiss finds at first for each result, and beside that.
_CANDIDATES, _MORE_CANDIDATES = 16, 64
# Where faiss would have to find more than this share, all vectors are read.
_MOST_CANDIDATES = 1 / 16
# faiss adds this to the codes, which it keeps as unsigned bytes.
_ZERO = 128
_BLOCK = 16_384
# A vector whose code leaves out so many times more than those of the first ones is always among the candidates.
_COARSE = 1.5


class _Asked(NamedTuple):
    """A query.

    Attributes:
        vector: (D,).
        codes: integers from -127 to 127, (D,): with these, faiss's sums are the same on every processor.
        scale: what the product of its code with a vector's is divided by.
        margin: the most that the quotient differs from the product of the vectors themselves.
    """

    vector: np.ndarray
    codes: np.ndarray
    scale: float
    margin: float


class FaissMatrix:
    """Codes of 8 bits a number, among which faiss finds candidates, and vectors in float16, which order these.

    The product of two codes differs from the vectors' by no more than the lengths of what the codes leave out. So no
    vector is missed, as long as the last result is further than that above the last candidate.
    A row whose vector is removed becomes zeros, and is the next one's.
    """

    def __init__(self, size: int, room: int) -> None:
        try:
            import faiss
        except ModuleNotFoundError as error:
            raise UserError(
                f"a memory of {FAISS_FROM:,} vectors or more needs faiss, which is not installed: "
                "pip install 'stellarbyte[memory]'"
            ) from error
        self._faiss: Any = faiss
        kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
        self._index: Any = faiss.IndexScalarQuantizer(size, kind, faiss.METRIC_INNER_PRODUCT)
        # Rows that nothing was written to take no memory.
        self._halves = np.empty((room * 9 // 8, size), np.float16)
        self._ids = np.empty(len(self._halves), np.int64)
        self._places: dict[int, int] = {}
        self._free: list[int] = []
        self._coarse = set[int]()
        self._scale, self._left_out, self._longest = 0.0, 0.0, 0.0

    def __len__(self) -> int:
        return len(self._places)

    def add(self, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Adds (N, D) vectors, none of whose ids is there."""
        if not len(ids):
            return
        halves = vectors.astype(np.float16)
        exact = halves.astype(np.float32)
        if not self._scale:
            self._scale = 127 / max(float(np.abs(exact).max()), 1e-3)
        codes = np.clip(np.rint(exact * self._scale), -127, 127)
        left_out: np.ndarray = np.linalg.norm(exact - codes / self._scale, axis=1)
        if not self._longest:
            self._longest = _COARSE * max(float(left_out.max()), 1e-6)
        places = self._new_places(len(ids), codes)
        self._halves[places], self._ids[places] = halves, ids
        self._places.update(zip(ids, places.tolist(), strict=True))
        is_coarse = left_out > self._longest
        self._coarse.update(places[is_coarse].tolist())
        self._left_out = max(self._left_out, float(left_out[~is_coarse].max(initial=0.0)))

    def remove(self, ids: Sequence[int]) -> None:
        """Removes vectors; ids that are not there are passed over."""
        places = [self._places.pop(number) for number in ids if number in self._places]
        if places:
            self._codes()[places] = _ZERO  # what is deleted is gone from memory too
            self._halves[places], self._ids[places] = 0, -1
            self._coarse.difference_update(places)
            self._free += places

    def search(self, vectors: np.ndarray, limit: int) -> list[list[tuple[int, float]]]:
        """See Matrix."""
        wanted = _CANDIDATES * limit + _MORE_CANDIDATES
        asked = [self._asked(vector) for vector in vectors]
        with self._threads(len(vectors)):
            products, places = self._index.search(np.stack([one.codes for one in asked]), wanted)
        return [
            self._exact(one, limit, wanted, near, float(last))
            for one, near, last in zip(asked, places, products[:, -1], strict=True)
        ]

    def _asked(self, vector: np.ndarray) -> _Asked:
        scale = 127 / max(float(np.abs(vector).max()), 1e-9)
        codes = np.rint(vector * scale).astype(np.float32)
        own = float(np.linalg.norm(vector - codes / scale))
        # What sums in float32 leave out at most: where faiss does not count in whole numbers, and in the products here.
        rounded = len(vector) * 2.0**-23
        margin = self._left_out * float(np.linalg.norm(vector)) + (1 + self._left_out) * own + rounded
        return _Asked(vector, codes, scale * self._scale, margin)

    def _exact(
        self, asked: _Asked, limit: int, wanted: int, places: np.ndarray, last: float
    ) -> list[tuple[int, float]]:
        """The nearest, given the `wanted` ones by their codes, and the last one's product."""
        rows = self._index.ntotal
        while wanted < rows * _MOST_CANDIDATES:
            found = self._best(asked.vector, limit, np.union1d(places, list(self._coarse)).astype(np.int64))
            if len(found) == limit and found[-1][1] > last / asked.scale + asked.margin:
                return found
            wanted *= 4
            with self._threads(1):
                products, near = self._index.search(asked.codes[None], wanted)
            places, last = near[0], float(products[0, -1])
        blocks = (np.arange(first, min(first + _BLOCK, rows)) for first in range(0, rows, _BLOCK))
        pairs = [pair for block in blocks for pair in self._best(asked.vector, limit, block)]
        return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:limit]

    def _best(self, vector: np.ndarray, limit: int, places: np.ndarray) -> list[tuple[int, float]]:
        places = places[self._ids[places] >= 0]
        with one_thread():
            products = self._halves[places].astype(np.float32) @ vector
        return best_of(self._ids[places], products[None], limit)[0]

    def _new_places(self, count: int, codes: np.ndarray) -> np.ndarray:
        """Rows for so many vectors, of which the codes are written."""
        free = [self._free.pop() for _ in range(min(count, len(self._free)))]
        self._codes()[free] = codes[: len(free)] + _ZERO
        first, rows = self._index.ntotal, self._index.ntotal + count - len(free)
        if rows > len(self._halves):
            room = max(rows, len(self._halves) * 9 // 8)
            self._halves = np.concatenate([self._halves[:first], np.empty((room - first, codes.shape[1]), np.float16)])
            self._ids = np.concatenate([self._ids[:first], np.empty(room - first, np.int64)])
        with self._threads(1):
            self._index.add(np.ascontiguousarray(codes[len(free) :], np.float32))
        return np.concatenate([np.array(free, np.int64), np.arange(first, rows)])

    def _codes(self) -> np.ndarray:
        """The codes as faiss has them, (rows, D); writing to them changes the index."""
        rows, size = self._index.ntotal, self._index.d
        if not rows:
            return np.empty((0, size), np.uint8)
        codes: np.ndarray = self._faiss.rev_swig_ptr(self._index.codes.data(), rows * size).reshape(rows, size)
        return codes

    @contextmanager
    def _threads(self, queries: int) -> Iterator[None]:
        """faiss shares out queries among threads; of a single one, or of codes, all but one would mostly wait."""
        before = self._faiss.omp_get_max_threads()
        self._faiss.omp_set_num_threads(min(before, queries))
        try:
            yield
        finally:
            self._faiss.omp_set_num_threads(before)

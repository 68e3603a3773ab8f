"""Centres and whitens vectors: takes away the mean of a store, and half of what all its texts share."""

from typing import NamedTuple

import numpy as np

from stellarbyte.memory.blas_threads import one_thread

# The mean of n vectors counts n / (n + this): a few texts do not tell what all have in common.
_PRIOR = 8
# Of the covariance. 1/2 whitens fully; half of that finds more, of a model's states too (docs/tried.md).
_POWER = 0.25
# Both are estimated from so many vectors, and of longer ones from so many numbers, but at least so many vectors: the
# work grows with the square of the number of vectors or of their length, whichever is less, times the other.
_MOST_ROWS, _MOST_VALUES, _LEAST_ROWS = 16_384, 1 << 22, 1024


class Whitening(NamedTuple):
    """x -> (x - mean) @ (rest · I + axes.T @ diag(gains - rest) @ axes), then of length 1.

    Attributes:
        mean: (D,).
        matrix: (D, D), symmetric, where there are no `axes` apart; None: there are, or the mean alone is taken away.
        axes: (R, D), the directions in which a sample of fewer vectors than numbers differs at all; None: all.
        gains: (R,), what is left of these directions, as a multiple of what is left of the others.
        rows: the number of vectors that the store had.
    """

    mean: np.ndarray
    matrix: np.ndarray | None
    axes: np.ndarray | None
    gains: np.ndarray | None
    rows: int

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """The whitened vectors of length 1, (N, D) float32; a vector that is the mean itself becomes zeros."""
        moved = self._evened(vectors.astype(np.float32) - self.mean)
        return moved / np.maximum(np.linalg.norm(moved, axis=-1, keepdims=True), 1e-9)

    def direction(self, vector: np.ndarray) -> np.ndarray:
        """What the product of any vector with it puts in the order of the whitened cosines with `vector`, (D,).

        But for the lengths that other vectors have when they are whitened, by which their cosines are divided.
        """
        found = self._evened(self._evened(vector.astype(np.float32) - self.mean))
        return found / max(float(np.linalg.norm(found)), 1e-9)

    @one_thread()
    def _evened(self, moved: np.ndarray) -> np.ndarray:
        if self.matrix is not None:
            return moved @ self.matrix
        if self.axes is not None and self.gains is not None:
            return moved + ((moved @ self.axes.T) * (self.gains - 1)) @ self.axes
        return moved

    def suits(self, count: int) -> bool:
        """Whether a store of `count` vectors is still about as large as the one that both were estimated for."""
        return self.rows * 4 <= count * 5 and count * 4 <= self.rows * 5


def rows_to_fit(size: int) -> int:
    """The number of vectors of this length that a whitening is estimated from."""
    return min(_MOST_ROWS, max(_LEAST_ROWS, _MOST_VALUES // size))


@one_thread()
def fit_whitening(sample: np.ndarray, count: int, *, directions: bool) -> Whitening:
    """The mean of (N, D) vectors, and half of what whitens them: the inverse fourth root of their covariance.

    Su et al. (2021, arXiv:2103.15316) take the inverse square root. The covariance is drawn towards a multiple of the
    identity by the oracle approximating shrinkage of Chen et al. (2010, arXiv:0907.4698), which is all of it when there
    are few vectors.

    count: the number of vectors in the store that the sample is of.
    directions: whether the covariance is made even; otherwise the mean alone is taken away.
    """
    rows, size = sample.shape
    if rows == 0:
        return Whitening(np.zeros(size, np.float32), None, None, None, 0)
    values = sample.astype(np.float64)
    mean = values.mean(axis=0) * (rows / (rows + _PRIOR))
    if not directions:
        return Whitening(mean.astype(np.float32), None, None, None, count)
    values -= mean
    # Of fewer vectors than numbers, the products of vectors have the covariance's eigenvalues, but for those of 0.
    few = rows < size
    products = (values @ values.T if few else values.T @ values) / rows
    trace, square = np.trace(products), np.sum(products**2)
    spread = (rows + 1 - 2 / size) * (square - trace**2 / size)
    share = min(1.0, ((1 - 2 / size) * square + trace**2) / spread) if spread > 0 else 1.0
    eigenvalues, vectors = np.linalg.eigh(products)
    shrunk, rest = (1 - share) * eigenvalues + share * trace / size, share * trace / size
    least = max(shrunk[-1], 1e-12) * 1e-6
    gains = np.maximum(shrunk, least) ** -_POWER
    if not few:
        return Whitening(mean.astype(np.float32), ((vectors * gains) @ vectors.T).astype(np.float32), None, None, count)
    there = eigenvalues > eigenvalues[-1] * 1e-10
    axes = (vectors[:, there] / np.sqrt(eigenvalues[there] * rows)).T @ values
    gains = gains[there] / max(rest, least) ** -_POWER
    return Whitening(mean.astype(np.float32), None, axes.astype(np.float32), gains.astype(np.float32), count)

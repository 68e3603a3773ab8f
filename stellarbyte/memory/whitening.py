"""Centres and whitens vectors: takes away the mean of a store, and the directions that all its texts share."""

from typing import NamedTuple

import numpy as np

# Vectors that are enough to estimate a covariance from.
MOST_ROWS = 20_000
# The mean of n vectors counts n / (n + this): a few texts do not tell what all have in common.
_PRIOR = 8
# Of the covariance. 1/2 whitens fully; half of that finds more, of a model's states too (docs/tried.md).
_POWER = 0.25


class Whitening(NamedTuple):
    """x -> (x - mean) @ matrix, then of length 1.

    Attributes:
        mean: (D,).
        matrix: (D, D), symmetric; None: the mean alone is taken away.
        rows: the number of vectors that both were estimated for.
    """

    mean: np.ndarray
    matrix: np.ndarray | None
    rows: int

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """The whitened vectors of length 1, (N, D) float32; a vector that is the mean itself becomes zeros."""
        moved = vectors.astype(np.float32) - self.mean
        if self.matrix is not None:
            moved = moved @ self.matrix
        lengths = np.linalg.norm(moved, axis=-1, keepdims=True)
        return moved / np.maximum(lengths, 1e-9)

    def suits(self, count: int) -> bool:
        """Whether a store of `count` vectors is still about as large as the one that both were estimated for."""
        return self.rows * 4 <= count * 5 and count * 4 <= self.rows * 5


def fit_whitening(vectors: np.ndarray, *, directions: bool) -> Whitening:
    """The mean of (N, D) vectors, and half of what whitens them: the inverse fourth root of their covariance.

    Su et al. (2021, arXiv:2103.15316) take the inverse square root. The covariance is drawn towards a multiple of the
    identity by the oracle approximating shrinkage of Chen et al. (2010, arXiv:0907.4698), which is all of it when there
    are few vectors.

    directions: whether the covariance is made even; otherwise the mean alone is taken away.
    """
    count, size = vectors.shape
    sample = vectors[:: max(1, count // MOST_ROWS)].astype(np.float64)
    rows = len(sample)
    if rows == 0:
        return Whitening(np.zeros(size, np.float32), None, 0)
    mean = sample.mean(axis=0) * (rows / (rows + _PRIOR))
    if not directions:
        return Whitening(mean.astype(np.float32), None, count)
    centred = sample - mean
    covariance = centred.T @ centred / rows
    trace, square = np.trace(covariance), np.sum(covariance**2)
    spread = (rows + 1 - 2 / size) * (square - trace**2 / size)
    share = min(1.0, ((1 - 2 / size) * square + trace**2) / spread) if spread > 0 else 1.0
    shrunk = (1 - share) * covariance + share * trace / size * np.eye(size)
    values, axes = np.linalg.eigh(shrunk)
    roots = np.maximum(values, max(values[-1], 1e-12) * 1e-6) ** -_POWER
    return Whitening(mean.astype(np.float32), ((axes * roots) @ axes.T).astype(np.float32), count)

"""What the numbers of one matrix look like: small ones, outliers, rank, and how far it is from its beginning."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from stellarbyte.report.spectrum import EXACT_SIDE, effective_rank

# A number is small below a tenth of the matrix's root mean square, and an outlier above six times it.
SMALL, OUTLIER = 0.1, 6.0

# Of a large matrix so many numbers, evenly spread, are held against a distribution.
_SAMPLE = 1 << 20
# What is looked at together, so that no further array of a matrix's size is made.
_BLOCK = 1 << 22

DEFINITIONS = {
    "small": f"the share of numbers whose size is below {SMALL} of the matrix's root mean square "
    f"({math.erf(SMALL / math.sqrt(2)):.1%} of normally distributed ones)",
    "outliers": f"the share of numbers whose size is above {OUTLIER:.0f} times the matrix's root mean square",
    "largest": "the largest size, over the matrix's root mean square",
    "effective_rank": "exp of the entropy of the singular values, taken as shares of their sum (Roy & Vetterli 2007); "
    f"where the smaller side is above {EXACT_SIDE}, a randomised estimate, mostly within 1 %",
    "rank_share": "the effective rank, as a share of the smaller side",
}
DISTANCE_OF_WEIGHTS = "the Frobenius norm of the change since the first weights, over the norm of these"
DISTANCE_OF_DISTRIBUTION = (
    "the largest difference between the distribution of the numbers and the normal distribution that they are drawn "
    f"from at first (Kolmogorov and Smirnov), over up to {_SAMPLE} of them: 0 to 1"
)


@dataclass(frozen=True)
class Facts:
    """The figures of MatrixFacts, of one matrix."""

    small: float
    outliers: float
    largest: float
    effective_rank: float | None
    rank_share: float | None
    estimated: bool
    init_distance: float | None
    not_finite: int


def facts(matrix: np.ndarray, first: np.ndarray | None = None, first_stddev: float | None = None) -> Facts:
    """The facts of a float32 matrix [M, N], which is neither empty nor changed.

    first: its first values, if they are known. first_stddev: else the deviation that those were drawn with.
    """
    flat = matrix.reshape(-1)
    finite = sum(int(np.isfinite(block).sum()) for block in _blocks(flat))
    squares = sum(float(np.square(_finite(block), dtype=np.float64).sum()) for block in _blocks(flat))
    rms = math.sqrt(squares / finite) if finite else 0.0
    small = outliers = 0
    largest = 0.0
    for block in _blocks(flat):
        sizes = np.abs(_finite(block))
        small += int((sizes < SMALL * rms).sum()) if rms else sizes.size
        outliers += int((sizes > OUTLIER * rms).sum())
        largest = max(largest, float(sizes.max(initial=0.0)))
    rank, estimated = effective_rank(matrix) if finite == flat.size else (None, False)
    return Facts(
        small=small / max(finite, 1),
        outliers=outliers / max(finite, 1),
        largest=largest / rms if rms else 0.0,
        effective_rank=rank,
        rank_share=None if rank is None else rank / min(matrix.shape),
        estimated=estimated,
        init_distance=_distance(flat, None if first is None else first.reshape(-1), first_stddev),
        not_finite=flat.size - finite,
    )


def mean(parts: list[Facts]) -> Facts:
    """The means over several matrices, such as those of experts; what is not finite is added up."""

    def over(name: str) -> float:
        return float(np.mean([getattr(part, name) for part in parts]))

    def over_known(name: str) -> float | None:
        return None if any(getattr(part, name) is None for part in parts) else over(name)

    return Facts(
        small=over("small"),
        outliers=over("outliers"),
        largest=over("largest"),
        effective_rank=over_known("effective_rank"),
        rank_share=over_known("rank_share"),
        estimated=any(part.estimated for part in parts),
        init_distance=over_known("init_distance"),
        not_finite=sum(part.not_finite for part in parts),
    )


def _distance(flat: np.ndarray, first: np.ndarray | None, first_stddev: float | None) -> float | None:
    if first is not None:
        change = norm = 0.0
        for now, then in zip(_blocks(flat), _blocks(first), strict=True):
            change += float(np.square(now.astype(np.float64) - then).sum())
            norm += float(np.square(then, dtype=np.float64).sum())
        return math.sqrt(change / norm) if norm and math.isfinite(change) else None
    if not first_stddev:
        return None
    step = -(-flat.size // _SAMPLE)
    values = np.sort(_finite(flat[::step])).astype(np.float64)
    if not values.size:
        return None
    expected: np.ndarray = _normal(values / first_stddev)
    below, through = np.arange(values.size) / values.size, np.arange(1, values.size + 1) / values.size
    return max(float(np.max(expected - below)), float(np.max(through - expected)))


def _normal(x: np.ndarray) -> np.ndarray:
    """The normal distribution's share below x, to 2e-7 (Abramowitz & Stegun 1964, 7.1.26)."""
    size = np.abs(x) / math.sqrt(2)
    t = 1 / (1 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = 0.5 * series * np.exp(-size * size)
    return np.where(x < 0, tail, 1 - tail)


def _blocks(flat: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]


def _finite(block: np.ndarray) -> np.ndarray:
    kept = np.isfinite(block)
    return block if kept.all() else block[kept]

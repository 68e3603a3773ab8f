"""The effective rank of matrices whose singular values are known."""

import math

import numpy as np
import pytest

from stellarbyte.report.spectrum import effective_rank

DRAWS = np.random.default_rng(3)


def of_values(values: np.ndarray, rows: int) -> np.ndarray:
    """A matrix [rows, N] with these singular values."""
    left, _ = np.linalg.qr(DRAWS.normal(size=(rows, len(values))))
    right, _ = np.linalg.qr(DRAWS.normal(size=(len(values), len(values))))
    return ((left * values) @ right).astype(np.float32)


def by_entropy(values: np.ndarray) -> float:
    shares = values[values > 0] / values.sum()
    return math.exp(-float((shares * np.log(shares)).sum()))


def test_known_ranks() -> None:
    assert effective_rank(np.eye(40, dtype=np.float32)) == (pytest.approx(40), False)
    one = np.outer(np.arange(1, 31), np.arange(1, 51)).astype(np.float32)
    assert effective_rank(one) == (pytest.approx(1, abs=1e-4), False)
    assert effective_rank(np.zeros((4, 5), np.float32)) == (0.0, False)
    values = 0.9 ** np.arange(60)
    assert effective_rank(of_values(values, 200))[0] == pytest.approx(by_entropy(values), rel=1e-4)


def test_it_depends_neither_on_the_size_of_the_numbers_nor_on_which_side_is_longer() -> None:
    matrix = of_values(1.0 / np.arange(1, 41), 70)
    assert effective_rank(matrix * 1e-12)[0] == pytest.approx(effective_rank(matrix)[0], rel=1e-5)
    assert effective_rank(matrix.T)[0] == pytest.approx(effective_rank(matrix)[0], rel=1e-9)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("even", np.ones(400)),
        ("power law", np.arange(1.0, 401) ** -0.8),
        ("low rank", np.r_[np.ones(12), np.zeros(388)]),
        ("low rank and noise", np.r_[np.full(12, 300.0), DRAWS.uniform(0.5, 1.5, 388)]),
        ("exponential", 0.99 ** np.arange(400)),
    ],
)
def test_the_estimate(name: str, values: np.ndarray) -> None:
    """Mostly within 1 %, and a few where values fall exponentially."""
    rank, estimated = effective_rank(of_values(values, 450), exact_side=100)
    assert estimated, name
    assert rank == pytest.approx(by_entropy(values), rel=0.06)

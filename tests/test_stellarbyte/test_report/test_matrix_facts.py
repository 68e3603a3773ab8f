"""The figures of matrices that were made to have them."""

import math

import numpy as np
import pytest

from stellarbyte.report import matrix_facts
from stellarbyte.report.matrix_facts import facts, mean

DRAWS = np.random.default_rng(0)


def normal(stddev: float = 0.02, shape: tuple[int, int] = (300, 200)) -> np.ndarray:
    return DRAWS.normal(scale=stddev, size=shape).astype(np.float32)


def test_small_numbers_and_outliers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix_facts, "_BLOCK", 7_000)  # so that there are several
    matrix = np.where(DRAWS.random((100, 100)) < 0.5, 1.0, -1.0).astype(np.float32)
    matrix[:10] = 0.01  # 1000 of 10000 numbers
    matrix[50, :3] = 50
    found = facts(matrix)
    rms = math.sqrt(float(np.square(matrix, dtype=np.float64).mean()))
    assert found.small == pytest.approx(0.1)
    assert found.outliers == pytest.approx(3e-4)
    assert found.largest == pytest.approx(50 / rms)
    assert found.not_finite == 0


def test_normal_numbers_have_the_shares_that_the_definition_tells() -> None:
    found = facts(normal())
    assert found.small == pytest.approx(math.erf(0.1 / math.sqrt(2)), abs=0.005)
    assert found.outliers == 0
    assert "8.0%" in matrix_facts.DEFINITIONS["small"]


def test_the_distance_from_the_first_weights() -> None:
    first = normal()
    assert facts(first, first).init_distance == 0
    assert facts(first * 1.5, first).init_distance == pytest.approx(0.5, rel=1e-5)
    assert facts(first, np.zeros_like(first)).init_distance is None


def test_the_distance_from_a_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = normal(0.02)
    assert facts(matrix, first_stddev=0.02).init_distance == pytest.approx(0, abs=0.01)
    # Between normal distributions of deviations 2 and 1 the largest difference is at sqrt(8/3 ln 2): 0.162.
    assert facts(matrix, first_stddev=0.01).init_distance == pytest.approx(0.162, abs=0.01)
    shifted = matrix + np.float32(1)
    assert facts(shifted, first_stddev=0.02).init_distance == pytest.approx(1, abs=1e-3)
    assert facts(matrix).init_distance is None
    monkeypatch.setattr(matrix_facts, "_SAMPLE", 5_000)
    assert facts(matrix, first_stddev=0.01).init_distance == pytest.approx(0.162, abs=0.03)


def test_numbers_that_are_not_finite_count_for_themselves_alone() -> None:
    matrix = normal()
    matrix[0, :3] = np.nan, np.inf, -np.inf
    found, without = facts(matrix, first_stddev=0.02), facts(normal(), first_stddev=0.02)
    assert (found.not_finite, found.effective_rank, found.rank_share) == (3, None, None)
    assert found.small == pytest.approx(without.small, abs=0.01)
    assert math.isfinite(found.largest)
    nothing = facts(np.full((3, 3), np.nan, np.float32), first_stddev=0.02)
    assert (nothing.not_finite, nothing.largest, nothing.init_distance) == (9, 0, None)


def test_zeros() -> None:
    found = facts(np.zeros((5, 4), np.float32), first_stddev=0.1)
    assert (found.small, found.outliers, found.effective_rank, found.rank_share) == (1, 0, 0, 0)


def test_the_mean_over_experts() -> None:
    parts = [facts(np.eye(4, dtype=np.float32)), facts(np.ones((4, 4), np.float32))]
    assert mean(parts).effective_rank == pytest.approx(2.5, abs=1e-3)
    bad = facts(np.full((4, 4), np.inf, np.float32))
    assert (mean([*parts, bad]).effective_rank, mean([*parts, bad]).not_finite) == (None, 16)

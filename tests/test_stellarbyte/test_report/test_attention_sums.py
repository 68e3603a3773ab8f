"""Facts on attention of weights whose facts are plain."""

import math

import numpy as np
import pytest

from stellarbyte.report.attention_sums import DRAWN, AttentionSums


def onto_itself(T: int) -> np.ndarray:
    return np.eye(T, dtype=np.float32)


def onto_the_first(T: int) -> np.ndarray:
    weights = np.zeros((T, T), np.float32)
    weights[:, 0] = 1
    return weights


def onto_all(T: int) -> np.ndarray:
    below = np.tril(np.ones((T, T), np.float32))
    return below / below.sum(axis=1, keepdims=True)


def test_heads_of_every_kind() -> None:
    T = 60
    sums = AttentionSums(heads=4)
    sums.add(np.stack([onto_itself(T), onto_all(T)]), numbers=[1, 3])  # heads 0 and 2 are pruned
    half = (onto_the_first(T) + onto_itself(T)) / 2
    sums.add(np.stack([onto_the_first(T), half, half, half]))
    facts = sums.facts([f"w{number}" for number in range(T)])
    queries = np.arange(1, T)  # the first sees itself alone
    assert facts.entropy[0] == (None, pytest.approx(0), None, pytest.approx(np.log(queries + 1).mean(), rel=1e-5))
    assert facts.entropy[1] == (pytest.approx(0), *[pytest.approx(math.log(2))] * 3)
    assert facts.distance[0] == (None, 0, None, pytest.approx((queries / 2).mean(), rel=1e-5))
    assert facts.distance[1] == (pytest.approx(queries.mean()), *[pytest.approx(queries.mean() / 2)] * 3)
    assert facts.first_token[0] == (None, 0, None, pytest.approx((1 / (queries + 1)).mean(), rel=1e-5))
    assert facts.first_token[1][0] == 1
    assert (facts.read, facts.tokens) == (T, tuple(f"w{number}" for number in range(DRAWN)))
    chosen = {pattern.chosen: (pattern.layer, pattern.head) for pattern in facts.patterns}
    assert chosen == {"first": (1, 0), "nearest": (0, 1), "widest": (0, 3)}  # others are these heads again
    shown = {pattern.chosen: np.array(pattern.weights) for pattern in facts.patterns}
    assert shown["first"].shape == (DRAWN, DRAWN)
    np.testing.assert_allclose(shown["widest"], onto_all(T)[:DRAWN, :DRAWN], atol=1e-3)


def test_one_token() -> None:
    sums = AttentionSums(1)
    sums.add(np.ones((1, 1, 1)))
    facts = sums.facts(["a"])
    assert (facts.entropy, facts.distance, facts.first_token) == (((0.0,),), ((0.0,),), ((1.0,),))


def test_weights_that_are_not_finite() -> None:
    sums = AttentionSums(1)
    sums.add(np.full((1, 3, 3), np.nan))
    facts = sums.facts(["a", "b", "c"])
    assert facts.patterns == ()

"""The paired bootstrap: its interval holds what it promises, and its sentence follows."""

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.evaluation.comparing import Comparison, compare
from stellarbyte.evaluation.measuring import Losses


def documents(nats: np.ndarray, bytes: np.ndarray) -> list[Losses]:
    return [Losses(np.array([n]), np.array([b])) for n, b in zip(nats, bytes, strict=True)]


def drawn(draw: np.random.Generator, count: int, difference: float) -> tuple[list[Losses], list[Losses]]:
    """Two models that agree on which documents are hard, and differ by so many bits a byte and chance."""
    bytes_N = draw.integers(200, 3000, count)
    hard_N = draw.normal(2.0, 0.6, count)
    ours, theirs = ((hard_N + draw.normal(extra, 0.1, count)) * bytes_N * np.log(2) for extra in (0.0, difference))
    return documents(ours, bytes_N), documents(theirs, bytes_N)


def test_the_interval_holds_the_true_difference_as_often_as_it_says() -> None:
    draw, held, false_alarms = np.random.default_rng(0), 0, 0
    for _ in range(120):
        found = compare(*drawn(draw, 40, 0.02))
        held += found.low <= 0.02 <= found.high
        false_alarms += compare(*drawn(draw, 40, 0.0)).p < 0.05
    # Of 120: 95 % within three standard deviations of chance, and what percentiles lose with 40 documents.
    assert 105 <= held <= 119
    assert 1 <= false_alarms <= 14


def test_what_a_comparison_says() -> None:
    ours, theirs = drawn(np.random.default_rng(1), 200, 0.1)
    found = compare(ours, theirs)
    sizes = [sum(each.nats.sum() for each in side) / sum(each.bytes.sum() for each in side) for side in (ours, theirs)]
    assert (found.ours, found.theirs) == pytest.approx([size / np.log(2) for size in sizes])
    assert found.difference == pytest.approx(found.theirs - found.ours)
    assert found.is_real and found.low < found.difference < found.high and found.p == 1 / 10_000
    assert found.units == "documents" and found.count == 200
    assert "B takes 0.0824 bits a byte more than A" in found.sentence(
        "A", "B"
    ) and "p < 0.0002, 200 documents" in found.sentence("A", "B")
    assert found.sentence("A", "B").endswith("the difference is real, and A is better on text like this")
    # As wide as the normal approximation of a ratio of sums, whose bounds are 1.96 standard errors away.
    bytes_N = np.array([each.bytes.sum() for each in ours])
    bits = [np.array([each.nats.sum() for each in side]) / np.log(2) for side in (theirs, ours)]
    residual_N = bits[0] - bits[1] - found.difference * bytes_N
    error = np.sqrt((residual_N**2).sum()) / bytes_N.sum()
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    other = compare(theirs, ours)
    assert (other.low, other.high) == pytest.approx((-found.high, -found.low))
    assert other.sentence("B", "A").endswith("the difference is real, and A is better on text like this")
    assert compare(ours, theirs) == found


def test_equal_models_and_rounding_are_no_difference() -> None:
    ours, _ = drawn(np.random.default_rng(2), 50, 0.0)
    same = compare(ours, ours)
    assert (same.difference, same.p, same.is_real) == (0.0, 1.0, False)
    rounded = compare(ours, [Losses(each.nats * (1 + 1e-7), each.bytes) for each in ours])
    assert rounded.low > 0 and not rounded.is_real
    assert rounded.sentence("A", "B").endswith("this text shows no difference between them")


def test_of_few_documents_the_blocks_are_drawn() -> None:
    draw = np.random.default_rng(3)
    blocks = [Losses(draw.normal(2000, 100, 25), np.full(25, 2048)) for _ in range(2)]
    found = compare(blocks, [Losses(each.nats * 1.2, each.bytes) for each in blocks])
    assert (found.units, found.count, found.is_real) == ("blocks of about 2048 bytes", 50, True)
    with pytest.raises(UserError, match="--compare needs at least 20 blocks of 2048 bytes or 30 documents"):
        compare(*[documents(np.ones(19), np.ones(19))] * 2)


def test_json() -> None:
    found = Comparison(1.0, 2.0, 1.0, 0.5, 1.5, 0.01, "documents", 30, 1000)
    assert found.to_dict()["is_real"] is True

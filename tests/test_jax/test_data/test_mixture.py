from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte_jax.data.mixture import Mixture, Segment

WEIGHTS = st.lists(st.floats(1e-3, 1e3, allow_subnormal=False), min_size=1, max_size=9).map(tuple)


def places(mixture: Mixture, start: int, stop: int) -> list[tuple[int, int]]:
    return [mixture.place(row) for row in range(start, stop)]


@given(weights=WEIGHTS, start=st.sampled_from([0, 2**33, 10**12 + 7]))
def test_each_source_has_its_share_and_each_of_its_rows_once(weights: tuple[float, ...], start: int) -> None:
    """By counting, what `counts` says in closed form; and what the docstring says of the shares, exactly."""
    mixture = Mixture([Segment(0, weights)])
    seen = list(mixture.counts(start))
    total = sum(map(Fraction, weights))
    most = 1 if len(weights) <= 3 else 2
    for row, (source, number) in enumerate(places(mixture, start, start + 200), start):
        assert number == seen[source]
        seen[source] += 1
        assert tuple(seen) == mixture.counts(row + 1)
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - (row + 1) * Fraction(weight) / total) < most


@given(
    changes=st.lists(st.tuples(st.integers(1, 40), st.tuples(*[st.floats(0.1, 9)] * 3)), min_size=1, max_size=4),
)
def test_sources_go_on_where_they_were_when_the_weights_change(
    changes: list[tuple[int, tuple[float, float, float]]],
) -> None:
    segments, first = [], 0
    for length, weights in changes:
        segments.append(Segment(first, weights))
        first += length
    whole = Mixture(segments)
    rows = places(whole, 0, first + 30)
    for source in range(3):
        numbers = [number for s, number in rows if s == source]
        assert numbers == list(range(len(numbers)))
    for count in range(1, len(segments)):  # what was before a change is as if there had been none
        earlier = Mixture(segments[:count])
        assert rows[: segments[count].first] == places(earlier, 0, segments[count].first)
    for a, b in pairwise([*(s.first for s in segments), first + 30]):
        assert [y - x for x, y in zip(whole.counts(a), whole.counts(b), strict=True)] == [
            sum(s == source for s, _ in rows[a:b]) for source in range(3)
        ]


def test_equal_weights_take_turns() -> None:
    order = [source for source, _ in places(Mixture([Segment(0, (1.0, 1.0))]), 0, 6)]
    assert order in ([0, 1] * 3, [1, 0] * 3)
    assert Segment(0, (3.0, 1.0)).shares == pytest.approx((0.75, 0.25))


def test_far_rows_cost_no_more_than_near_ones() -> None:
    mixture = Mixture([Segment(0, (0.7, 0.2, 0.1))])
    source, number = mixture.place(10**15)
    assert mixture.counts(10**15)[source] == number
    assert mixture.counts(10**15 + 1)[source] == number + 1

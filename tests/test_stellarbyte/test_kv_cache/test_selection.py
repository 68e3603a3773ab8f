"""What every policy must leave: the first and the newest tokens, what a window sees, and an order."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.kv_cache.budgets import FEWEST_LANES, LANES
from stellarbyte.kv_cache.selection import FEWEST_SLOTS, SINKS, keep, recent, room

SCORES = [0.0, -1.0, 1.0, 2.5, float("inf"), float("-inf"), float("nan"), 3.4e38]


def kept(
    scores: np.ndarray, *, slots: int, window: int | None = None, padding: int = 0, coming: int = 0, gap: int = 0
) -> np.ndarray:
    """The numbers of the tokens that one head keeps, -1 for an empty slot; `gap` tokens are gone before."""
    index = np.arange(gap, gap + scores.size, dtype=np.int32)
    index[: max(0, padding - gap)] = -1
    (source,) = keep(
        scores.astype(np.float32)[None, None],
        index[None, None],
        first_B=np.array([padding], np.int32),
        length_B=np.array([gap + scores.size], np.int32),
        slots=slots,
        window=window,
        coming_B=np.array([coming], np.int32),
    )[0]
    assert source.shape == (slots,)
    return np.where(source >= 0, index[source], -1)


@settings(max_examples=settings.default.max_examples // 3)
@given(
    st.integers(1, 60),
    st.integers(0, 2**32),
    st.integers(FEWEST_SLOTS, 48),
    st.none() | st.integers(1, 60),
    st.integers(0, 8),
    st.integers(0, 1),
)
def test_the_rules(tokens: int, seed: int, slots: int, window: int | None, padding: int, coming: int) -> None:
    scores = np.random.default_rng(seed).choice(SCORES, tokens)
    got = kept(scores, slots=slots, window=window, padding=padding, coming=coming)
    real = set(range(padding, len(scores)))
    numbers = got[got >= 0]
    assert (got[: numbers.size] >= 0).all(), "an empty slot stands before a full one"
    assert (np.diff(numbers) > 0).all()
    if len(real) + coming <= slots:
        assert set(numbers) == real
        return
    assert numbers.size == slots - room(slots)
    seen = real if window is None else {number for number in real if number > len(scores) - window}
    always = {number for number in seen if number < padding + SINKS or number >= len(scores) - recent(slots)}
    assert always <= set(numbers) <= real
    assert len(seen) < slots - room(slots) or set(numbers) <= seen, "a key that nobody sees has taken a slot"


@settings(max_examples=settings.default.max_examples // 3)
@given(st.integers(33, 50), st.integers(0, 2**32), st.integers(0, 3))
def test_the_highest_scores_stay_and_the_newer_of_equals(tokens: int, seed: int, gap: int) -> None:
    slots, scores = 32, np.random.default_rng(seed).integers(0, 4, tokens)
    numbers = [number for number in kept(scores, slots=slots, gap=gap) if number >= 0]
    free = [number for number in range(gap, gap + len(scores) - recent(slots)) if number >= SINKS]
    chosen = [number for number in numbers if number in free]
    best = sorted(free, key=lambda number: (-scores[number - gap], -number))[: len(chosen)]
    assert chosen == sorted(best)


def test_what_is_always_kept_leaves_room_to_choose() -> None:
    for slots in range(FEWEST_SLOTS, 5000):
        assert SINKS + recent(slots) < slots - room(slots)


def test_what_is_always_kept_fits_into_the_fewest_lanes() -> None:
    for slots in range(FEWEST_SLOTS, 5000, LANES):
        assert SINKS + recent(slots) <= FEWEST_LANES * slots // LANES - room(slots)


def test_rows_are_pruned_one_by_one() -> None:
    index = np.stack([np.arange(20), np.where(np.arange(20) < 16, np.arange(20), -1)]).astype(np.int32)[:, None]
    source = keep(
        np.zeros((2, 1, 20), np.float32),
        index,
        first_B=np.zeros(2, np.int32),
        length_B=np.array([20, 16], np.int32),
        slots=16,
        window=None,
    )
    assert source[0, 0].tolist() == [0, 1, 2, 3, *range(9, 20), -1]
    assert source[1, 0].tolist() == list(range(16))

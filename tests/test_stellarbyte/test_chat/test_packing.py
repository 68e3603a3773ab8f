from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.chat.packing import pack, samples_of_rows

LENGTHS = st.integers(1, 40).flatmap(
    lambda row: st.tuples(st.just(row), st.lists(st.integers(1, row), min_size=1, max_size=60))
)


@given(LENGTHS)
def test_no_row_is_too_long_and_none_could_join_another(drawn: tuple[int, list[int]]) -> None:
    row_length, lengths = drawn
    rows = pack(np.array(lengths), row_length)
    used = np.bincount(rows, weights=lengths)
    assert used.max() <= row_length
    assert used.min() > 0
    # The first sample of each row was not to fit into any row before it.
    assert len(used) == 1 or np.sort(used)[:2].sum() > row_length
    assert np.array_equal(rows, pack(np.array(lengths), row_length))


def test_rows_are_nearly_full() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 50_000).astype(np.int64), 2, 1024)
    assert lengths.sum() > 0.99 * 1024 * (pack(lengths, 1024).max() + 1)


def test_the_fullest_row_that_has_room_is_taken() -> None:
    first, second, third = pack(np.array([5, 6, 4]), 10)
    assert second == third != first


def test_equally_long_samples_meet_whoever_is_their_neighbour_in_the_file() -> None:
    rows = pack(np.full(100, 5), 10)
    assert sum(abs(int(a) - int(b)) == 0 for a, b in pairwise(rows)) < 10


@given(LENGTHS)
def test_the_samples_of_the_rows_are_all_there(drawn: tuple[int, list[int]]) -> None:
    row_length, lengths = drawn
    rows = samples_of_rows(pack(lengths, row_length))
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_length for row in rows)


def test_no_samples_are_in_no_row() -> None:
    assert samples_of_rows(pack([], 8)) == []


def test_seeds_give_other_rows() -> None:
    assert not np.array_equal(pack([3] * 50, 9, 0), pack([3] * 50, 9, 1))

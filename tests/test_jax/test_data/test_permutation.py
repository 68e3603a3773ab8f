import random

import grain
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte_jax.data.permutation import Permutation
from tiers import short_tier


def epoch(order: Permutation, count: int, number: int = 0) -> list[int]:
    return [order[number * count + index] for index in range(count)]


@pytest.mark.long
@given(count=st.integers(200, 3000), seed=st.integers(0, 2**32 - 1), number=st.integers(0, 10**6))
@settings(max_examples=settings.default.max_examples // 20)
def test_each_row_comes_once_an_epoch(count: int, seed: int, number: int) -> None:
    rows = epoch(Permutation(count, seed), count, number)
    assert sorted(rows) == list(range(count))
    assert rows != epoch(Permutation(count, seed), count, number + 1)


@pytest.mark.parametrize("count", short_tier([2**16 - 1, 2**16, 2**16 + 1, 2**16 + 2], 2))
def test_also_where_grains_own_order_repeats_a_row(count: int) -> None:
    rows = epoch(Permutation(count, 3), count, 2)
    assert len(set(rows)) == count and (min(rows), max(rows)) == (0, count - 1)
    grains = grain.MapDataset.source(range(count)).seed(3).shuffle()
    theirs = [grains[2 * count + index] for index in range(count)]
    assert (len(set(theirs)) == count) == (count != 2**16 + 1), "grain has mended it: Permutation need not"
    assert theirs[:-1] == rows[:-1] and (theirs == rows or count == 2**16 + 1), "orders of old runs stay as they are"


@pytest.mark.parametrize("bits", [18, 20, 32, 34])
def test_the_first_and_the_last_place_differ(bits: int) -> None:
    count = 2**bits + 1
    order = Permutation(count, 3)
    assert order[0] != order[count - 1] and order[count] != order[2 * count - 1] == count - 1


@pytest.mark.long
@pytest.mark.parametrize("count", [2**32 + 1, 10**10])
def test_no_two_places_of_billions_have_one_row(count: int) -> None:
    """Of so many random numbers some would be equal: 2.6 pairs on average, or 4.5 of the larger."""
    samples = random.Random(1).sample(range(count), 150_000 if count < 2**33 else 300_000)
    order = Permutation(count, 1)
    rows = {order[sample] for sample in samples}
    assert len(rows) == len(samples) and max(rows) < count

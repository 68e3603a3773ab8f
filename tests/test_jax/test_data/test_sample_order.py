import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte_jax.data.mixture import Segment
from stellarbyte_jax.data.sample_order import SampleId, SampleOrder

HUGE = 10**10


# grain's cipher has 16 bits or more, and walks until it meets a row: of very few rows it takes long.
@given(rows=st.lists(st.integers(20, 40), min_size=2, max_size=4), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=settings.default.max_examples // 50)
def test_each_row_comes_once_an_epoch_of_its_source(rows: list[int], seed: int) -> None:
    segments = [Segment(0, tuple(1.0 + n for n in range(len(rows)))), Segment(37, (1.0,) * len(rows))]
    order = SampleOrder(rows, seed, segments)
    seen: dict[tuple[int, int], list[int]] = {}
    for sample in range(3 * sum(rows)):
        source, epoch, row = order[sample]
        of_source = [key[1] for key in seen if key[0] == source]
        assert epoch in (max(of_source, default=0), max(of_source, default=-1) + 1)
        seen.setdefault((source, epoch), []).append(row)
    for (source, epoch), found in seen.items():
        whole = (source, epoch + 1) in seen
        assert len(set(found)) == len(found) and (set(found) == set(range(rows[source])) or not whole)
    assert order.epochs(3 * sum(rows)) == pytest.approx(
        [sum(len(found) for (s, _), found in seen.items() if s == source) / rows[source] for source in range(len(rows))]
    )


def test_sources_of_one_size_have_orders_of_their_own() -> None:
    order = SampleOrder([50, 50], 0, [Segment(0, (1.0, 1.0))])
    ids = [order[sample] for sample in range(200)]
    orders = {(s, e): tuple(i.row for i in ids if (i.source, i.epoch) == (s, e)) for s in (0, 1) for e in (0, 1)}
    assert len(set(orders.values())) == 4


@pytest.mark.parametrize("rows", [2**31 + 100, 2**32, 2**32 + 1, HUGE])
def test_rows_beyond_32_bits_are_all_reached(rows: int) -> None:
    """No part of the order falls back to 32 bits, and both ends of an epoch are inside it."""
    order = SampleOrder([rows], 3)
    random_ = random.Random(0)
    samples = [0, rows - 1, *(random_.randrange(rows) for _ in range(2000))]
    found = [order[sample] for sample in samples]
    assert all(epoch == 0 and 0 <= row < rows for _, epoch, row in found)
    assert sum(row >= rows // 2 for _, _, row in found) == pytest.approx(1000, abs=150)
    assert len({row for _, _, row in found}) == len(set(samples))
    assert order[rows].epoch == 1 and order[2 * rows - 1].epoch == 1
    # If only the lowest 31 or 32 bits of a number counted, these would be equal.
    tops = range(rows >> 31)
    assert len({order[sample + 2**31 * top].row for sample in range(50) for top in tops}) == 50 * len(tops)


def test_memory_does_not_grow_with_the_rows() -> None:
    SampleOrder([500], 0)[3]  # what is imported and made once
    used = []
    for rows in (100, HUGE):
        tracemalloc.start()
        order = SampleOrder([rows, rows], 0, [Segment(0, (0.7, 0.3))])
        assert isinstance(order[HUGE * 3 + 1], SampleId)
        used.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert used[1] < used[0] + 20_000

"""How batches grow: by whole doublings, each for as many steps, and how many rows that takes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.batch_stages import Growth, Stage, merged, rows_between, stage_of

STEADY = Growth(None, 64, 0)


@st.composite
def growths(draw: st.DrawFn) -> Growth:
    doublings = draw(st.integers(0, 5))
    initial = draw(st.integers(1, 7))
    if doublings == 0:
        return Growth(None, initial, 0)
    return Growth(initial, initial << doublings, draw(st.integers(doublings, 40)))


def test_a_size_doubles_and_holds_for_as_many_steps() -> None:
    assert Growth(2, 16, 9).starts() == {0: 2, 3: 4, 6: 8, 9: 16}
    assert Growth(2, 16, 10).starts() == {0: 2, 3: 4, 6: 8, 10: 16}
    assert STEADY.starts() == {0: 64}


@given(growth=growths())
def test_every_size_has_a_step_and_the_last_one_comes_when_it_should(growth: Growth) -> None:
    growth.check("training", "batch_size", "training.batch_size", 1000)
    starts = growth.starts()
    assert all(after == 2 * before for before, after in pairwise(starts.values()))
    assert [*starts] == sorted(set(starts)) and [*starts][-1] == growth.steps
    lengths = [after - before for before, after in pairwise(starts)]
    assert not lengths or max(lengths) - min(lengths) <= 1


@given(sizes=growths(), lengths=growths(), steps=st.lists(st.integers(0, 60), min_size=3, max_size=3).map(sorted))
def test_the_rows_of_steps_are_those_of_their_stages(sizes: Growth, lengths: Growth, steps: list[int]) -> None:
    stages = merged(sizes, lengths)
    first, middle, last = steps
    rows = [stage_of(stages, step).batch_size for step in range(first, last)]
    assert rows_between(stages, first, last) == sum(rows)
    assert rows_between(stages, first, middle) + rows_between(stages, middle, last) == sum(rows)
    for step in range(first, last):
        stage = stage_of(stages, step)
        for growth, size in ((sizes, stage.batch_size), (lengths, stage.sequence_length)):
            assert size == growth.starts()[max(start for start in growth.starts() if start <= step)]
    assert len({(stage.batch_size, stage.sequence_length) for stage in stages}) == len(stages)


def test_two_growths_together_have_the_borders_of_both() -> None:
    assert merged(Growth(4, 8, 6), Growth(16, 64, 6)) == (Stage(0, 4, 16), Stage(3, 4, 32), Stage(6, 8, 64))
    assert merged(Growth(None, 8, 0), STEADY) == (Stage(0, 8, 64),)


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        (Growth(3, 8, 4), r"initial_batch_size 3 must be a half, a quarter, .* of training\.batch_size 8"),
        (Growth(8, 8, 4), "initial_batch_size 8 must be a half"),
        (Growth(16, 8, 4), "initial_batch_size 16 must be a half"),
        (Growth(0, 8, 4), "initial_batch_size 0 must be at least 1 or null"),
        (Growth(1, 8, 2), "batch_size_warmup_steps 2 must be at least 3"),
        (Growth(1, 8, 0), "batch_size_warmup_steps 0 must be at least 3"),
        (Growth(1, 8, 101), r"batch_size_warmup_steps 101 is more than training\.max_steps 100"),
        (Growth(None, 8, 2), r"batch_size_warmup_steps 2 grows from training\.initial_batch_size: set that"),
    ],
)
def test_what_does_not_grow_is_refused(growth: Growth, message: str) -> None:
    with pytest.raises(UserError, match=message):
        growth.check("training", "batch_size", "training.batch_size", 100)

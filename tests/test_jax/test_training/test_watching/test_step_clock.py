"""The parts of a run's time add up, and a step's time is training alone."""

import time

import pytest

from stellarbyte_jax.training.watching.step_clock import StepClock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that a test moves on by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_parts_of_a_run(now: list[float]) -> None:
    clock = StepClock()
    assert clock.seconds_left(5) is None and clock.recent_rate() is None and clock.paused_for is None
    now[0] += 30  # compiling
    clock.compiled(28.0)
    assert clock.steps_done([10]) == (None, {"data_seconds": 0})
    with clock.waiting():
        now[0] += 1
    now[0] += 3
    assert clock.steps_done([10]) == (4.0, {"data_seconds": 1})
    with clock.paused("checkpoint"):
        now[0] += 7
    with clock.paused("validation"):
        now[0] += 25
        clock.compiled(20.0)
        assert clock.paused_for == 5
    now[0] += 2
    with clock.waiting():
        now[0] += 2
    assert clock.steps_done([10, 30]) == (2.0, {"data_seconds": 1, "checkpoint_seconds": 7})
    assert clock.steps_done([10])[1] == {"data_seconds": 0}
    expected = {"compile": 48, "steps": 8, "data": 3, "checkpoint": 7, "validation": 5}
    assert clock.totals == pytest.approx(expected)
    assert clock.elapsed == 70
    assert (clock.steps, clock.tokens) == (4, 60)


def test_what_is_left_out(now: list[float]) -> None:
    clock = StepClock()
    clock.steps_done([10])
    now[0] += 60
    clock.leave_out()
    assert clock.steps_done([10])[0] is None
    now[0] += 60
    clock.restart()
    now[0] += 2
    assert clock.steps_done([10])[0] == 2
    assert clock.recent_rate() == (5.0, 2.0) and clock.seconds_left(5) == 10

"""Saves come in time, on several processes after the same steps although their clocks differ."""

from typing import Any

import numpy as np
import pytest

from stellarbyte_jax.config import CheckpointConfig
from stellarbyte_jax.processes.joined import Processes
from stellarbyte_jax.training.save_times import SaveTimes


class Follower(Processes):
    """Another process, which hears what process 0 has said."""

    def __init__(self, heard: list[Any]) -> None:
        self._heard = iter(heard)

    def share(self, value: Any) -> list[Any]:
        return [next(self._heard), value]


class Leader(Processes):
    def __init__(self) -> None:
        self.said: list[Any] = []

    def share(self, value: Any) -> list[Any]:
        self.said.append(value)
        return [value]


def saves(config: CheckpointConfig, seconds: list[float], processes: Processes) -> list[tuple[int, float]]:
    """(step, seconds since the save before) of each save of steps that take so many seconds."""
    now, last, found = 0.0, 0.0, []
    times = SaveTimes(config, 0, processes, clock=lambda: now)
    for step, length in enumerate(seconds, start=1):
        now += length
        if times.due(step):
            times.saved(step)
            found.append((step, now - last))
            last = now
    return found


def test_steps_alone() -> None:
    found = saves(CheckpointConfig(save_steps=4), [1.0] * 13, Processes())
    assert [step for step, _ in found] == [4, 8, 12]


@pytest.mark.parametrize("pace", [0.01, 0.7, 4.0, 100.0])
def test_minutes_alone(pace: float) -> None:
    """As soon as a step ends that is later; clocks are looked at seldom."""
    leader = Leader()
    steps = int(1000 / pace) + 3
    found = saves(CheckpointConfig(save_steps=None, save_minutes=2.0), [pace] * steps, leader)
    assert len(found) >= 3 and all(120 <= passed <= 120 + 2 * pace for _, passed in found)
    assert len(leader.said) <= min(steps, 300)


def test_both_and_whichever_comes_first() -> None:
    found = saves(CheckpointConfig(save_steps=10, save_minutes=1.0), [10.0] * 20 + [1.0] * 20, Processes())
    assert [step for step, _ in found] == [6, 10, 16, 20, 30, 40]


def test_all_processes_save_after_the_same_steps() -> None:
    generator = np.random.default_rng(0)
    for minutes in (0.3, 2.0):
        config = CheckpointConfig(save_steps=700, save_minutes=minutes)
        paces = [generator.lognormal(-1, 1.5, 2000).tolist() for _ in range(2)]
        leader = Leader()
        expected = [step for step, _ in saves(config, paces[0], leader)]
        follower = Follower(leader.said)
        assert [step for step, _ in saves(config, paces[1], follower)] == expected
        assert next(follower._heard, None) is None, "both have said equally much"
        assert len(leader.said) < 2000


def test_a_run_that_turns_slow_is_hardly_late() -> None:
    found = saves(CheckpointConfig(save_steps=None, save_minutes=1.0), [0.1] * 500 + [1.0] * 300, Processes())
    assert all(passed <= 60 + 50 for _, passed in found)

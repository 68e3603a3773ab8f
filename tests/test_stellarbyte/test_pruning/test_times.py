"""Times are those of the calls that nothing has disturbed."""

import itertools

import pytest

from stellarbyte.pruning import times as module
from stellarbyte.pruning.times import times


@pytest.mark.parametrize(("slow", "rounds"), [(0.1, 50), (100, 4)])
def test_the_fastest_of_several_rounds_counts(slow: float, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 ms for a prompt and 0.1 ms for a token, but most calls are disturbed; a slow model has fewer rounds."""
    clock, calls = [0.0], []
    disturbed = itertools.cycle([0.5, 0.0, 0.2, 0.3, 0.0])

    def generate(new: int) -> int:
        calls.append(new)
        clock[0] += slow * (2e-3 + 1e-4 * (new - 1)) * (1 + next(disturbed))
        return new

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    first, each = times(generate, room=21)
    assert first == pytest.approx(2e-3 * slow) and each == pytest.approx(1e-4 * slow)
    assert len(calls) == 2 + 2 * rounds and set(calls) == {1, 21}

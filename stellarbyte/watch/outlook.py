"""Works out how fast a run is, and when it will be done."""

from dataclasses import dataclass

from stellarbyte.figures import VALIDATION
from stellarbyte.watch.series import Series

_RECENT_STEPS = 100


@dataclass(frozen=True)
class Outlook:
    """seconds_per_step: the mean of the last steps. tokens_per_second: the same of tokens. seconds_left: until the run
    is done, validations and saves included; each is None if it is not known.
    """

    seconds_per_step: float | None
    tokens_per_second: float | None
    seconds_left: float | None


def outlook(series: Series, max_steps: int | None, eval_steps: int | None) -> Outlook:
    """The outlook by the records so far.

    max_steps: the steps that the run is to do. eval_steps: after how many it validates. Either may be None.
    """
    seconds = _mean(series.recent("step_seconds", _RECENT_STEPS))
    rates = series.recent("tokens_per_second", _RECENT_STEPS)
    # The harmonic mean: all tokens over all seconds.
    rate = len(rates) / sum(1 / each for each in rates) if rates and min(rates) > 0 else None
    if seconds is None or max_steps is None or max_steps <= series.last:
        return Outlook(seconds, rate, None)
    left = max_steps - series.last
    validation = series.latest(f"{VALIDATION}seconds")
    validating = left // eval_steps * validation if eval_steps and validation is not None else 0.0
    saves = series.recent("checkpoint_seconds", _RECENT_STEPS)
    saving = sum(saves) / len(series.recent("step_seconds", _RECENT_STEPS)) * left if saves else 0.0
    return Outlook(seconds, rate, left * seconds + validating + saving)


def patience(series: Series) -> float:
    """The seconds of silence after which a run that lives counts as stuck: far beyond all that it has taken so far."""
    longest = max(
        *(series.recent("step_seconds", _RECENT_STEPS) or [0.0]),
        *(series.recent("checkpoint_seconds", _RECENT_STEPS) or [0.0]),
        series.latest(f"{VALIDATION}seconds") or 0.0,
        series.compiled_seconds,
    )
    return max(120.0, 10 * longest)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

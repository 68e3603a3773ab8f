"""Divides a run's time into its parts: steps, waiting for data, validating, saving, compiling."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

# The rate that is shown is the mean over this many steps; the record of a step has the rate of this step alone.
_STEPS_IN_RATE = 10


class StepClock:
    """Measures steps, and what lies between them, while it runs.

    A step's time reaches from the end of the step before to its own end, without what is `paused`. A step that
    compiles, such as the first, has none.

    Attributes:
        totals: seconds of each part so far: `steps`, and in them `data`; `validation`, `checkpoint`, `compile`.
        steps, tokens: the number of steps that `totals["steps"]` is of, and their tokens.
    """

    def __init__(self) -> None:
        self.totals: dict[str, float] = defaultdict(float)
        self.steps, self.tokens = 0, 0.0
        self._began = time.monotonic()
        self._at: float | None = None
        self._compiled = False
        self._since: dict[str, float] = defaultdict(float)
        self._pause_began: float | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=_STEPS_IN_RATE)
        self._smooth: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._began

    @property
    def paused_for(self) -> float | None:
        """Seconds since the pause began that is going on; None if none is."""
        return None if self._pause_began is None else time.monotonic() - self._pause_began

    def seconds_left(self, steps: int) -> float | None:
        """How long so many more steps will take; None before the first that has a time."""
        return None if self._smooth is None else self._smooth * steps

    def recent_rate(self) -> tuple[float, float] | None:
        """Tokens a second, and seconds a step, over the last steps that had a time."""
        if not self._recent:
            return None
        tokens, seconds = (sum(values) for values in zip(*self._recent, strict=True))
        return tokens / seconds, seconds / len(self._recent)

    def leave_out(self) -> None:
        """Leaves the time since the last step out of the next one's."""
        self._at = None

    def restart(self) -> None:
        """Lets the next step's time begin now."""
        self._at = time.monotonic()

    def compiled(self, seconds: float) -> None:
        """Notes that a program was compiled; its step has no time, and a pause is as long as it is without."""
        self.totals["compile"] += seconds
        if self._pause_began is not None:
            self._pause_began += seconds

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the host waits for a batch."""
        began = time.monotonic()
        yield
        self._add("data", time.monotonic() - began)

    @contextmanager
    def paused(self, part: str) -> Iterator[None]:
        """A context for what is no training, such as `validation` or `checkpoint`."""
        self._pause_began = time.monotonic()
        try:
            yield
        finally:
            self._at = time.monotonic()
            self._add(part, self._at - self._pause_began)
            self._pause_began = None

    def steps_done(self, tokens: list[float]) -> tuple[float | None, dict[str, float]]:
        """Ends steps with so many tokens each. Several have equal shares of the time since the last call.

        Returns:
            The seconds of each, None if one of them compiled; and the seconds of the parts: of data, each step's share,
            and of saving before the first of them, if there was any.
        """
        now, count = time.monotonic(), len(tokens)
        seconds = None
        if self._compiled and self._at is not None:
            seconds = max(now - self._at, 1e-9) / count
            # Smoothed over about ten steps, for the ETA.
            self._smooth = 0.9 * (self._smooth or seconds) + 0.1 * seconds
            self._recent.extend((each, seconds) for each in tokens)
            self.totals["steps"] += seconds * count
            self.steps += count
            self.tokens += sum(tokens)
        self._compiled, self._at = True, now
        parts = {"data_seconds": self._since["data"] / count}
        if self._since["checkpoint"]:
            parts["checkpoint_seconds"] = self._since["checkpoint"]
        self._since.clear()
        return seconds, parts

    def _add(self, part: str, seconds: float) -> None:
        self.totals[part] += seconds
        self._since[part] += seconds

"""Keeps the figures of a run while they come in, and hands out what a page has not seen yet."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

import numpy as np

from stellarbyte.curves import task_names, thinned
from stellarbyte.figures import VALIDATION, finite, value_of
from stellarbyte.metrics_file import TokensSeen, record_of

# The figures that the page draws or tells, beside those of tasks.
KEPT = (
    *("loss", "objective", "divergence", "accuracy", "learning_rate", "grad_norm", "balance_loss", "dropped_share"),
    *("tokens_per_second", "mfu", "step_seconds", "checkpoint_seconds", "kept_channels", "kept_heads"),
    *("host_bytes", "hbm_bytes", "hbm_limit_bytes"),
    *(VALIDATION + name for name in ("loss", "accuracy", "bits_per_byte", "seconds")),
)
_MOST_POINTS = 1500


class _Figure:
    """A figure's values, each with its step, the tokens seen, and the number of its record."""

    def __init__(self) -> None:
        self.records, self.steps = array("q"), array("q")
        self.tokens, self.values = array("d"), array("d")


class Series:
    """The figures of a run by their names in metrics.jsonl.

    count: the number of records so far. generation: rises whenever the file was begun anew, and all records are others.
    last: the last step with a record. compiled_seconds: the longest compilation.
    """

    def __init__(self) -> None:
        self.generation = 0
        self._clear()

    def _clear(self) -> None:
        self.count, self.last, self.tokens, self.compiled_seconds = 0, 0, 0, 0.0
        self._seen = TokensSeen()
        self._figures: dict[str, _Figure] = {}

    def begin_anew(self) -> None:
        """Forgets all records."""
        self.generation += 1
        self._clear()

    def add(self, lines: Iterable[bytes]) -> None:
        """Adds the lines that are records; others were cut off, or no run wrote them."""
        for line in lines:
            record = record_of(line.decode("utf-8", "replace").strip())
            if record is not None and 0 <= record["step"] < 2**62:
                self._add(record)

    def _add(self, record: dict[str, Any]) -> None:
        step = record["step"]
        if "loss" in record:  # older runs have not recorded the sum of their tokens
            self._seen.add(record)
            self.tokens = self._seen.total if self._seen.total is not None else self.tokens
        for name in (*KEPT, *task_names(record)):
            value = finite(value_of(record, name))
            if value is not None:
                figure = self._figures.setdefault(name, _Figure())
                figure.records.append(self.count)
                figure.steps.append(step)
                figure.tokens.append(self.tokens)
                figure.values.append(value)
        self.compiled_seconds = max(self.compiled_seconds, finite(record.get("compile_seconds")) or 0.0)
        self.last = max(self.last, step)
        self.count += 1

    def latest(self, name: str) -> float | None:
        """The last value of a figure."""
        figure = self._figures.get(name)
        return None if figure is None else figure.values[-1]

    def recent(self, name: str, most: int) -> list[float]:
        """The last values of a figure, at most so many."""
        figure = self._figures.get(name)
        return [] if figure is None else list(figure.values[-most:])

    def at_step(self, name: str, step: int) -> float | None:
        """The last value of a figure at this very step."""
        figure = self._figures.get(name)
        if figure is None:
            return None
        values = (
            value for at, value in zip(reversed(figure.steps), reversed(figure.values), strict=True) if at == step
        )
        return next(values, None)

    def best(self, name: str) -> tuple[int, float] | None:
        """The step and the value of the least value of a figure, the first of equals."""
        figure = self._figures.get(name)
        if figure is None:
            return None
        place = int(np.argmin(np.frombuffer(figure.values)))
        return figure.steps[place], figure.values[place]

    def since(self, generation: int, count: int) -> dict[str, Any]:
        """What a page lacks that has the first `count` records of a generation, ready for JSON.

        "whole": whether this is all there is, to replace what the page has; curves of many points are thinned, and
        keep the highest and lowest of each stretch. "figures": name -> steps, tokens and values.
        """
        whole = generation != self.generation or not 0 <= count <= self.count or self.count - count > _MOST_POINTS
        figures = {}
        for name, figure in self._figures.items():
            first = 0 if whole else bisect_left(figure.records, count)
            values = np.frombuffer(figure.values)[first:]
            if not len(values):
                continue
            places = thinned(values, _MOST_POINTS) + first
            figures[name] = {
                "steps": [figure.steps[place] for place in places],
                "tokens": [figure.tokens[place] for place in places],
                "values": [figure.values[place] for place in places],
            }
        return {"generation": self.generation, "count": self.count, "whole": whole, "figures": figures}

"""One line of a certificate: what was checked, whether it holds, the figures, and what is wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Check:
    """The result of one check.

    name: what was checked. shown: its figures in words, for people. figures: the same for programs. differences: a
    sentence for each thing that is wrong. skipped: why it was not checked; it then neither holds nor fails.
    """

    name: str
    shown: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    differences: Sequence[str] = ()
    skipped: str | None = None

    @property
    def result(self) -> str:
        """ "ok", "not ok" or "not checked"."""
        if self.differences:
            return "not ok"
        return "ok" if self.skipped is None else "not checked"

    def record(self) -> dict[str, Any]:
        """The check as JSON."""
        record: dict[str, Any] = {"check": self.name, "result": self.result}
        record |= {"why": self.skipped} if self.skipped is not None else {}
        return record | {"shown": self.shown, **self.figures, "differences": list(self.differences)}


@dataclass
class Difference:
    """How far two arrays are apart that are given in parts: the largest difference, and the second's largest value."""

    apart: float = 0.0
    largest: float = 0.0

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Counts a part of both in. What is not finite stays so in both figures."""
        if a.size == 0:
            return
        with np.errstate(invalid="ignore"):  # of infinities
            apart = np.subtract(a, b)
        np.abs(apart, out=apart)
        self.apart = float(np.maximum(self.apart, apart.max()))
        self.largest = float(np.maximum(self.largest, np.maximum(b.max(), -b.min())))

    def relative(self, scale: float = 0.0) -> float | None:
        """The difference in units of the largest value, or of `scale` if that is more; None if one is not finite."""
        if not (np.isfinite(self.apart) and np.isfinite(self.largest)):
            return None
        return self.apart / max(self.largest, scale, float(np.finfo(np.float32).tiny))


def relative_error(a: np.ndarray, b: np.ndarray) -> float | None:
    """The largest difference in units of the largest value of `b`; None if a value is not finite."""
    difference = Difference()
    difference.add(a, b)
    return difference.relative()


def is_within(error: float | None, tolerance: float) -> bool:
    """Whether an error is a number, and small enough."""
    return error is not None and error <= tolerance


def in_words(error: float | None) -> str:
    """An error as a sentence holds it."""
    return "nan" if error is None else f"{error:.1e}"


def worst(errors: Sequence[float | None]) -> float | None:
    """The largest error; None if one of them is None."""
    known = [error for error in errors if error is not None]
    return max(known, default=0.0) if len(known) == len(errors) else None

"""Logarithmic axes whose ticks are written out, since the page's font draws no powers."""

from collections.abc import Callable
from typing import Any


def logarithmic(axis: Any, written: Callable[[float], str], base: int = 10) -> None:
    """Makes matplotlib's axis logarithmic. written: a tick in words."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
    scale("log", base=base)
    axis.set_major_locator(LogLocator(base=base, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: written(value)))
    axis.set_minor_formatter(NullFormatter())

"""Bars of parts on top of each other."""

from collections.abc import Callable, Sequence
from typing import Any

from stellarbyte.looks import colours


def stacked(
    axes: Any,
    names: Sequence[str],
    parts: Sequence[tuple[str, int, Sequence[float]]],
    written: Callable[[float], str],
    across: bool = False,
) -> None:
    """Draws a bar for each name, of parts one after the other, with the sum at its end.

    Args:
        axes: matplotlib's.
        names: what each bar stands for.
        parts: (name, number of its colour, a value for each bar).
        written: a sum in words.
        across: whether the bars lie, the first at the top.
    """
    draw, at = (axes.barh, "left") if across else (axes.bar, "bottom")
    places = range(len(names))
    sums = [0.0] * len(names)
    for name, colour, values in parts:
        if any(values):
            draw(places, values, 0.68, **{at: list(sums)}, color=colours.series(colour), label=name)
        sums = [below + value for below, value in zip(sums, values, strict=True)]
    most = max(sums, default=0.0) or 1.0
    for place, total in zip(places, sums, strict=True):
        x, y = (total + most * 0.015, place) if across else (place, total + most * 0.015)
        align = {"va": "center"} if across else {"ha": "center", "va": "bottom"}
        axes.text(x, y, written(total), fontsize=9.5, color=colours.MUTED, **align)
    along, other = (axes.yaxis, axes.xaxis) if across else (axes.xaxis, axes.yaxis)
    along.set_ticks(list(places), list(names))
    other.set_ticks([])
    for side in ("bottom", "top", "right") if across else ("left", "top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    if across:
        axes.invert_yaxis()
        axes.set_xlim(0, most * 1.24)
    else:
        axes.set_ylim(0, most * 1.1)

"""Heat maps: a field of numbers, of which some may be unknown."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stellarbyte.looks import colours

# Even steps look even, on light and on dark, and without colour vision.
_MAP = "viridis"
# As many letters fit below a map; longer names are turned.
_LETTERS = 36


def heat(
    figure: Any,
    values: np.ndarray,
    columns: Sequence[str],
    rows: Sequence[str],
    labels: tuple[str, str] = ("", ""),
    percent: bool = False,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draws float [rows, columns] as coloured cells with a scale beside them; NaN is left empty.

    Args:
        figure: an empty figure.
        values: what is drawn; the first row is at the top.
        columns, rows: the names along the two sides; where there are many, some of them are left out.
        labels: what columns and rows are.
        percent: whether the scale is in percent.
        limits: the ends of the scale; by default the smallest and the largest number.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

    axes = figure.subplots()
    known = values[np.isfinite(values)]
    least, most = limits or ((float(known.min()), float(known.max())) if known.size else (0.0, 1.0))
    if least == most:  # a scale from 0, on which the one number can be read
        least, most = min(2 * least, 0.0), max(2 * most, 0.0) or float(least == 0)
    drawn = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", interpolation="none", cmap=_MAP, vmin=least, vmax=most
    )
    turned = sum(len(name) + 2 for name in columns) > _LETTERS and max(map(len, columns), default=0) > 2
    _ticks(axes.xaxis, columns, 16 if turned else 10)
    if turned:
        axes.tick_params(axis="x", labelrotation=90)
    _ticks(axes.yaxis, rows, 14)
    axes.set_xlabel(labels[0])
    # One or two Chinese signs stand upright.
    upright = {"rotation": 0, "labelpad": 10} if len(labels[1]) < 3 and not labels[1].isascii() else {}
    axes.set_ylabel(labels[1], **upright)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    scale = figure.colorbar(drawn, ax=axes, pad=0.02, aspect=26)
    scale.outline.set_visible(False)
    scale.ax.tick_params(length=0, colors=colours.LINE, labelcolor=colours.MUTED)
    scale.locator = MaxNLocator(5)
    scale.formatter = PercentFormatter(1.0) if percent else FuncFormatter(lambda value, _: f"{value:.4g}")
    scale.update_ticks()


def _ticks(axis: Any, names: Sequence[str], most: int) -> None:
    every = max(1, -(-len(names) // most))
    axis.set_ticks(list(range(0, len(names), every)), list(names[::every]))


def field(values: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Rows of different lengths as float64 [rows, longest]; None, and what a row lacks, is NaN."""
    array = np.full((len(values), max((len(row) for row in values), default=0)), np.nan)
    for number, row in enumerate(values):
        array[number, : len(row)] = [np.nan if value is None else value for value in row]
    return array

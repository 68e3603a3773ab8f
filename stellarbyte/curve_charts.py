"""Draws the curves of runs, a chart for each figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stellarbyte.curves import TASK, Curve, RunCurves, smoothed, task_names, thinned
from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below

# Of a curve, as many points as a wide screen can show.
_MOST_POINTS = 1000
# By default a line is the mean over a fiftieth of the run.
_WINDOWS = 50


@dataclass(frozen=True)
class Panel:
    """What one chart of curves shows.

    Attributes:
        name: its title in English, and the name of its file with `-` for spaces.
        line: the figure that is a line. points: the one that is points joined by dashes. Either may be empty.
        logarithmic: whether its axis is.
    """

    name: str
    line: str
    points: str
    logarithmic: bool


PANELS = (
    Panel("loss (validation dashed)", "loss", "validation_loss", False),
    Panel("validation bits per byte", "", "validation_bits_per_byte", False),
    Panel("learning rate", "learning_rate", "", False),
    Panel("gradient norm", "grad_norm", "", True),
    Panel("tokens per second", "tokens_per_second", "", False),
)


def panels_of(runs: Sequence[RunCurves]) -> list[Panel]:
    """The panels for which a run has a curve; those of tasks come last."""
    tasks = dict.fromkeys(name for run in runs for name in task_names(run.curves))
    panels = (*PANELS, *(Panel(f"accuracy of {name.removeprefix(TASK)}", "", name, False) for name in tasks))
    return [panel for panel in panels if any({panel.line, panel.points} & run.curves.keys() for run in runs)]


def curve_charts(
    runs: Sequence[RunCurves],
    by: str = "step",
    window: int | None = None,
    words: Mapping[str, str] | None = None,
    named: bool = False,
) -> list[Chart]:
    """A chart for each panel of which a run has a curve; the n-th run has the n-th colour.

    Args:
        runs: the runs.
        by: what the curves are drawn over, "step" or "tokens".
        window: over how many steps the lines are means; None for a fiftieth of each run.
        words: another language's words for the panels' names, for "step" and "tokens".
        named: whether the runs' names stand below each chart, where there are several.
    """
    words = words or {}
    names = ", ".join(run.name for run in runs)
    charts = []
    for panel in panels_of(runs):
        title = words.get(panel.name, panel.name)
        draw = partial(_draw_figure, panel=panel, runs=runs, by=by, window=window, label=words.get(by, by), named=named)
        charts.append(Chart(panel.name.partition(" (")[0].replace(" ", "-"), title, f"{title}: {names}", draw))
    return charts


def draw_panel(axes: Any, panel: Panel, runs: Sequence[RunCurves], by: str, window: int | None, label: str) -> None:
    """Draws a panel's curves on axes; `label` stands at the axis of steps or tokens."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator

    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.8)
    if panel.logarithmic:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif panel.line == "tokens_per_second":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    for number, run in enumerate(runs):
        look: dict[str, Any] = {"color": colours.series(number)}
        curve = run.curves.get(panel.line)
        if curve is not None:
            mean = smoothed(curve.values, window_of(curve, window) if panel.line != "learning_rate" else 1)
            _line(axes, curve, mean, by, label=run.name, **look)
            if (mean != curve.values).any():
                _line(axes, curve, curve.values, by, **look, alpha=0.3, linewidth=0.7)
        curve = run.curves.get(panel.points)
        if curve is not None:
            _line(axes, curve, curve.values, by, label=run.name, marker="o", markersize=3.5, linestyle="--", **look)


def window_of(curve: Curve, window: int | None) -> int:
    """Over how many of a curve's points a line is the mean."""
    return window or max(1, len(curve) // _WINDOWS)


def _draw_figure(
    figure: Any, panel: Panel, runs: Sequence[RunCurves], by: str, window: int | None, label: str, named: bool
) -> None:
    axes = figure.subplots()
    draw_panel(axes, panel, runs, by, window, label)
    if named:
        legend_below(figure, axes)


def _line(axes: Any, curve: Curve, values: np.ndarray, by: str, **look: Any) -> None:
    places = thinned(values, _MOST_POINTS)
    axes.plot((curve.tokens if by == "tokens" else curve.steps)[places], values[places], **look)

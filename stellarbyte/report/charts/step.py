"""The arrays of one step of training: how large their numbers are, in the order of computation."""

from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below
from stellarbyte.report.charts.axes import logarithmic
from stellarbyte.report.measurements import TensorStatistics
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words

KINDS = ("activation", "activation_gradient", "parameter", "gradient")


def step_charts(report: Report, words: Words) -> list[Chart]:
    """A chart for each kind of array: root mean square and largest magnitude."""
    found = report.measured.step_statistics
    if found is None:
        return []
    charts = []
    for kind in KINDS:
        tensors = [each for each in found.tensors if each.kind == kind and each.largest > 0]
        if len(tensors) > 1:
            title = words(f"chart.step.{kind}")
            order = words("axis.order" if "activation" in kind else "axis.listed")
            most = max(tensors, key=lambda each: each.largest)
            alt = words("chart.step.alt", title=title, model=report.name, name=most.name)
            draw = partial(_draw, tensors=tensors, words=words, order=order)
            charts.append(Chart(f"step-{kind.replace('_', '-')}", title, alt, draw))
    return charts


def _draw(figure: Any, tensors: list[TensorStatistics], words: Words, order: str) -> None:
    axes = figure.subplots()
    for number, (name, values) in enumerate(
        (("step.rms", [each.rms for each in tensors]), ("step.largest", [each.largest for each in tensors]))
    ):
        axes.plot(range(1, len(values) + 1), values, "o-", markersize=2.5, linewidth=1, color=colours.series(number))
        axes.lines[-1].set_label(words(name))
    bad = [number for number, each in enumerate(tensors, 1) if each.not_finite]
    if bad:
        axes.plot(
            bad, [max(tensors[n - 1].largest, 1e-30) for n in bad], "X", color=colours.BAD, label=words("step.bad")
        )
    logarithmic(axes.yaxis, lambda value: f"{value:g}")
    axes.set_xlabel(order)
    axes.grid(alpha=0.8)
    legend_below(figure, axes, columns=3)

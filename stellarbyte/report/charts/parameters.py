"""The pie of a model's parameters."""

from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.report.parts import colour_of, grouped
from stellarbyte.report.quantities import share
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words


def parameter_charts(report: Report, words: Words) -> list[Chart]:
    """The pie, with its largest part set off; none for a model without numbers."""
    parts = sorted(grouped(report.parameters.parts).items(), key=lambda part: -part[1])
    if not parts:
        return []
    labels = [f"{words.of('part', name)}  {share(number / report.parameters.total)}" for name, number in parts]
    draw = partial(_draw, parts=parts, labels=labels)
    description = words("chart.parameters.alt", model=report.name, parts=words("list").join(labels))
    height = max(150.0, 20.0 * len(parts) + 30)
    return [Chart("parameters", words("chart.parameters"), description, draw, height=height)]


def _draw(figure: Any, parts: list[tuple[str, int]], labels: list[str]) -> None:
    axes = figure.subplots()
    wedges, *_ = axes.pie(
        [number for _, number in parts],
        explode=[0.09, *[0.0] * (len(parts) - 1)] if len(parts) > 1 else None,
        colors=[colours.series(colour_of(name)) for name, _ in parts],
        startangle=90,
        counterclock=False,
        wedgeprops={"linewidth": 1.2, "edgecolor": colours.PANEL},
    )
    figure.legend(
        wedges, labels, loc="outside right center", handlelength=0.9, handleheight=0.9, labelspacing=0.6, borderpad=0
    )

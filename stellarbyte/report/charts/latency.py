"""Measured speed over batch and length, and where it stands under the machine's roofline."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below
from stellarbyte.report.charts.axes import logarithmic
from stellarbyte.report.measurements import Latency, LatencyPoint, Machine
from stellarbyte.report.quantities import count, exact, flops
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words

_PHASES = ("prefill", "decode")


def latency_charts(report: Report, words: Words) -> list[Chart]:
    """A chart of tokens a second for each phase, and the roofline."""
    latency = report.measured.latency
    if latency is None or not latency.points:
        return []
    charts = []
    for phase in _PHASES:
        best = latency.fastest(phase)
        if best is not None:
            points = [point for point in latency.points if point.phase == phase]
            title = words(f"chart.speed.{phase}")
            told = words(
                "chart.speed.alt",
                title=title,
                model=report.name,
                rate=count(best.tokens_per_second, words.lang),
                batch=best.batch,
                length=exact(best.length),
            )
            draw = partial(_draw_speed, points=points, words=words, phase=phase)
            charts.append(Chart(f"{phase}-speed", title, told, draw))
    charts.append(_roofline(report, latency, words))
    return charts


def _roofline(report: Report, latency: Latency, words: Words) -> Chart:
    machine = latency.machine
    title = words("chart.roofline")
    told = words(
        "chart.roofline.alt",
        model=report.name,
        flops=flops(machine.flops, "FLOP/s"),
        bandwidth=flops(machine.bandwidth, "B/s"),
    )
    draw = partial(_draw_roofline, points=latency.points, machine=machine, words=words)
    return Chart("roofline", title, told, draw, height=235)


def _draw_speed(figure: Any, points: Sequence[LatencyPoint], words: Words, phase: str) -> None:
    """Over the batch, a line for each length."""
    from matplotlib.ticker import FuncFormatter

    axes = figure.subplots()
    batches = sorted({point.batch for point in points})
    for number, length in enumerate(sorted({point.length for point in points})):
        line = sorted((point for point in points if point.length == length), key=lambda point: point.batch)
        axes.plot(
            [batches.index(point.batch) for point in line],
            [point.tokens_per_second for point in line],
            "o-",
            markersize=4,
            color=colours.series(number),
            label=words(f"legend.{phase}", length=exact(length)),
        )
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(batches)), list(map(str, batches)))
    axes.set_xlim(-0.3, len(batches) - 0.7)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value, words.lang)))
    axes.set_xlabel(words("axis.batch"))
    axes.grid(alpha=0.8)
    legend_below(figure, axes)


def _draw_roofline(figure: Any, points: Sequence[LatencyPoint], machine: Machine, words: Words) -> None:
    axes = figure.subplots()
    found = [(point, point.flops / max(point.nbytes, 1.0), point.flops / max(point.median, 1e-12)) for point in points]
    ridge = machine.flops / machine.bandwidth
    intensities = [intensity for _, intensity, _ in found]
    first, last = min(*intensities, ridge) / 2, max(*intensities, ridge) * 2
    axes.plot(
        [first, ridge, last],
        [first * machine.bandwidth, machine.flops, machine.flops],
        color=colours.MUTED,
        label=words("legend.roof"),
    )
    for number, phase in enumerate(_PHASES):
        of_phase = [(intensity, reached) for point, intensity, reached in found if point.phase == phase]
        if of_phase:
            axes.plot(*zip(*of_phase, strict=True), "o", markersize=5, color=colours.series(number), label=words(phase))
    logarithmic(axes.xaxis, lambda value: f"{value:g}")
    logarithmic(axes.yaxis, lambda value: flops(value, "FLOP/s"))
    axes.set_xlabel(words("axis.intensity"))
    axes.grid(alpha=0.8)
    legend_below(figure, axes, columns=3)

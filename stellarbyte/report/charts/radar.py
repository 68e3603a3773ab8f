"""The radar: several models beside each other, every figure as a share of the largest one's."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words

# More than these would hide each other.
_MOST_MODELS = 8
_FEWEST_AXES = 3
# Names of fewer letters stand in two columns.
_NARROW = 18


def _cache(report: Report) -> float | None:
    return float(report.memory.cache[0].token) if report.memory.cache else None


def _decode(report: Report) -> float | None:
    return report.flops.decode[-1].total if report.flops and report.flops.decode else None


def _training(report: Report) -> float | None:
    return report.flops.training.total if report.flops else None


def _speed(report: Report) -> float | None:
    fastest = report.measured.latency.fastest("decode") if report.measured.latency else None
    return fastest.tokens_per_second if fastest else None


def _bits(report: Report) -> float | None:
    return report.measured.token_losses.bits_per_byte if report.measured.token_losses else None


_AXES: tuple[tuple[str, Callable[[Report], float | None]], ...] = (
    ("parameters", lambda report: report.parameters.total),
    ("active", lambda report: report.parameters.active),
    ("training", _training),
    ("decode", _decode),
    ("cache", _cache),
    ("context", lambda report: report.architecture.context),
    ("layers", lambda report: report.architecture.num_layers or None),
    ("speed", _speed),
    ("bits", _bits),
)


def radar_charts(reports: Sequence[Report], words: Words) -> list[Chart]:
    """The radar of what is known of every model; none for one model, or where too little is known."""
    compared = reports[:_MOST_MODELS]
    axes = [(name, [value(report) for report in compared]) for name, value in _AXES]
    known = [(words(f"radar.{name}"), [float(v) for v in values if v]) for name, values in axes]
    whole = [(name, values) for name, values in known if len(values) == len(compared)]
    if len(compared) < 2 or len(whole) < _FEWEST_AXES:
        return []
    shares = [(name, [value / max(values) for value in values]) for name, values in whole]
    names = [report.name for report in compared]
    alt = words("chart.radar.alt", models=words("list").join(names), axes=words("list").join(name for name, _ in whole))
    return [
        Chart("radar", words("chart.radar"), alt, partial(_draw, shares=shares, names=names), width=330, height=310)
    ]


def _draw(figure: Any, shares: Sequence[tuple[str, Sequence[float]]], names: Sequence[str]) -> None:
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    angles = [2 * math.pi * number / len(shares) for number in range(len(shares))]
    for number, name in enumerate(names):
        values = [values[number] for _, values in shares]
        axes.plot(
            [*angles, angles[0]], [*values, values[0]], "o-", color=colours.series(number), markersize=3, label=name
        )
        axes.fill(angles, values, color=colours.series(number), alpha=0.08)
    axes.set_ylim(0, 1.05)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["", "50 %", "", "100 %"], fontsize=8.5)
    axes.set_rlabel_position(180 / len(shares))
    axes.set_xticks(angles, [name for name, _ in shares])
    for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=2)
    axes.grid(alpha=0.9)
    axes.spines["polar"].set_color(colours.LINE)
    columns = 2 if max(map(len, names)) < _NARROW else 1
    legend_below(figure, axes, columns)

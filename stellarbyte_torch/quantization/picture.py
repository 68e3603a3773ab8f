"""Draws the error of each quantised layer, beside that of plain rounding."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below
from stellarbyte_torch.quantization.quantize import LinearError

PICTURE = "quantization.svg"

_WIDTH, _EACH, _HEIGHT = 500.0, 6.5, 280.0
_MOST_LABELS = 24


def errors_chart(title: str, errors: Sequence[LinearError]) -> Chart:
    """Layers in their order from left to right, errors relative to the output, on a logarithmic scale."""
    told = f"{title}: {len(errors)} layers"
    width = max(_WIDTH, _EACH * len(errors))
    return Chart("quantization", title, told, partial(_draw, errors=errors), width, _HEIGHT)


def _draw(figure: Any, errors: Sequence[LinearError]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes, places = figure.subplots(), range(len(errors))
    rounded, ours = colours.series(1), colours.series(0)
    axes.plot(places, [error.rounding_error for error in errors], "x", color=rounded, label="plain rounding")
    axes.plot(places, [error.error for error in errors], "o", color=ours, markersize=4, label="this folder")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("error of the output")
    step = max(1, -(-len(errors) // _MOST_LABELS))
    axes.set_xticks(places[::step], [_short(error.name) for error in errors[::step]], rotation=90)
    axes.grid(axis="y", alpha=0.8)
    legend_below(figure, axes)


def _short(name: str) -> str:
    """A layer's number and its last name: `3 q_proj` of model.layers.3.self_attn.q_proj."""
    parts = name.split(".")
    numbers = [part for part in parts if part.isdecimal()]
    return " ".join([*numbers, parts[-1]])

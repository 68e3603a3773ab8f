"""Draws the error after each layer, and what is allowed of it."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below

_WIDTH, _HEIGHT = 540, 240
# Errors from a tenth of float32's precision to what is plainly another model.
_LOWEST, _HIGHEST = -8, 0
# The name of a stage that is no layer takes so many of the places that numbers of layers take, of _PLACES in all.
_NAME, _PLACES = 2.6, 20

Errors = Mapping[str, float | None]


def errors_chart(title: str, hidden: Errors, gradients: Errors, limits: tuple[float, float]) -> Chart:
    """Errors relative to the largest value, on a logarithmic scale, of hidden states and of gradients.

    `limits` are what is allowed of each, drawn as dashed lines. An error that is no number stands at the top and is
    called nan.
    """
    kinds = {"hidden states": (hidden, limits[0]), "gradients": (gradients, limits[1])}
    worst = [f"{name} {_worst(errors)}" for name, (errors, _) in kinds.items() if errors]
    told = f"the largest errors are those of {' and '.join(worst)}" if worst else "nothing was compared"
    return Chart("errors", title, f"{title}: {told}", partial(_draw, kinds=kinds), _WIDTH, _HEIGHT)


def _draw(figure: Any, kinds: Mapping[str, tuple[Errors, float]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    names = sorted({"embedding", *(name for errors, _ in kinds.values() for name in errors)}, key=_order)
    x = _places(names)
    for number, (name, (errors, limit)) in enumerate(kinds.items()):
        stages, colour = sorted(errors, key=_order), colours.series(number)
        values = [_drawn(errors[stage]) for stage in stages]
        axes.axhline(limit, color=colour, linestyle="--", linewidth=1)
        label = f"{name}, at most 1e{math.log10(limit):.0f}"
        axes.plot([x[stage] for stage in stages], values, "o-", markersize=3.5, color=colour, label=label)
        for stage in stages:
            if errors[stage] is None:
                axes.annotate("nan", (x[stage], 1), xytext=(4, -10), textcoords="offset points")
    axes.set_yscale("log")
    axes.set_ylim(10.0**_LOWEST / 2, 10.0**_HIGHEST * 2)
    axes.yaxis.set_major_locator(LogLocator(numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.grid(axis="y", alpha=0.8)
    layers = [name for name in names if name.startswith("layer ")]
    shown = {name: name.removeprefix("layer ") for name in layers[:: max(1, -(-len(layers) // 16))]}
    shown |= {name: name for name in names if not name.startswith("layer ")}
    axes.set_xticks([x[name] for name in shown], list(shown.values()))
    if layers:
        axes.set_xlabel("layer")
    legend_below(figure, axes)


def _order(name: str) -> tuple[int, int]:
    """Where a stage is on its way from the tokens to the logits."""
    kind, _, number = name.partition(" ")
    order = ("positions", "embedding", "layer", "norm", "head")
    return order.index(kind), int(number or 0)


def _places(names: list[str]) -> dict[str, float]:
    """Where each stage stands; many layers share what the others' names leave them."""
    layers = sum(name.startswith("layer ") for name in names)
    room = (_PLACES - _NAME * (len(names) - layers)) / max(1, layers)
    x, end = {}, 0.0
    for name in names:
        own = min(room, _NAME) if name.startswith("layer ") else _NAME
        x[name], end = end + own / 2, end + own
    return x


def _drawn(error: float | None) -> float:
    """The error within the scale; one that is no number is at its top."""
    return 10.0**_HIGHEST if error is None else min(max(error, 10.0**_LOWEST), 10.0**_HIGHEST)


def _tick(value: float) -> str:
    power = round(math.log10(value))
    beyond = {_LOWEST: "≤ ", _HIGHEST: "≥ "}.get(power, "")
    return f"{beyond}1e{power}" if power else f"{beyond}1"


def _worst(errors: Errors) -> str:
    return "nan" if None in errors.values() else f"{max(error for error in errors.values() if error is not None):.1e}"

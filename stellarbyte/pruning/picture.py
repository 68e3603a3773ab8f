"""Draws a pruned model: its perplexity over the share that is kept, and what each layer keeps."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.pruning.report import Layer, Report

_WIDTH, _HEIGHT = 480, 470
_PRUNED, _RECOVERED, _HEADS, _INNER = (colours.series(number) for number in (0, 1, 0, 2))
_MOST_NAMES = 24


def pareto(title: str, reports: Sequence[Report]) -> Chart:
    """Points for the model before, for each report and for what was trained on; and the last one's layers."""
    told = ", ".join(f"{each.share:.0%} has {each.after.perplexity:.4g}" for each in reports)
    draw = partial(_draw, reports=reports)
    return Chart("pareto", title, f"perplexity by the share that is kept: {told}", draw, _WIDTH, _HEIGHT)


def _draw(figure: Any, reports: Sequence[Report]) -> None:
    above, below = figure.subplots(2, 1, height_ratios=(3, 2))
    _draw_points(above, reports)
    _draw_layers(below, reports[-1])


def _draw_points(axes: Any, reports: Sequence[Report]) -> None:
    """Perplexities on a logarithmic axis, as they are exponentials of losses."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

    pruned = [(each.share, each.after.perplexity) for each in reports if not each.is_recovered]
    points = sorted([(1.0, reports[0].before.perplexity), *pruned])
    axes.plot(*zip(*points, strict=True), "o-", markersize=5, color=_PRUNED)
    for share, perplexity in points:
        # The line falls to the right, so words stand above a point and to its right; the last one has no room there.
        place: dict[str, Any] = {"xytext": (4, 5)} if share < 1 else {"xytext": (0, 7), "ha": "center"}
        axes.annotate(f"{perplexity:.4g}", (share, perplexity), textcoords="offset points", **place)
    for each in reports:
        if each.is_recovered:
            point = each.share, each.after.perplexity
            axes.plot(*point, "o", markersize=6, markerfacecolor=colours.GROUND, markeredgecolor=_RECOVERED)
            words = f"{each.after.perplexity:.4g} trained on"
            axes.annotate(words, point, xytext=(7, -3), textcoords="offset points", color=_RECOVERED)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("perplexity")
    axes.set_xticks(sorted({share for share, _ in points}))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel(f"share of the {reports[0].by} that is kept")
    axes.margins(x=0.08, y=0.15)
    axes.grid(alpha=0.8)


def _draw_layers(axes: Any, report: Report) -> None:
    """Two bars a layer: the shares of its heads, and of its channels or experts, that are left."""
    from matplotlib.ticker import PercentFormatter

    has_experts = any(layer.experts is not None for layer in report.whole)
    shares = [_shares(layer, whole) for layer, whole in zip(report.layers, report.whole, strict=True)]
    layers = range(len(shares))
    names = "heads", "experts" if has_experts else "channels"
    for place, (name, colour) in enumerate(zip(names, (_HEADS, _INNER), strict=True)):
        starts = [layer + 0.4 * (place - 1) for layer in layers]
        axes.bar(starts, [each[place] for each in shares], 0.38, align="edge", color=colour, label=name)
    every = -(-len(shares) // _MOST_NAMES)
    axes.set_xticks(layers[::every])
    axes.set_xlabel("layer")
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", alpha=0.8)
    axes.set_title(f"what each layer keeps at {report.share:.0%}", loc="left")
    # Above the bars, which may be as high as the axes.
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.99), ncols=2, handlelength=0.9, handleheight=0.9)


def _shares(layer: Layer, whole: Layer) -> tuple[float, float]:
    """The shares of a layer's heads, and of its channels or experts, that are left; none of one that is gone."""
    pairs = (layer.heads, whole.heads), (layer.channels or layer.experts, whole.channels or whole.experts)
    heads, inner = ((left or 0) / (before or 1) for left, before in pairs)
    return heads, inner

"""The memory of a model: at rest, in training, and of its cache."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below
from stellarbyte.report.charts.axes import logarithmic
from stellarbyte.report.charts.bars import stacked
from stellarbyte.report.memory import CacheMemory, TrainingMemory
from stellarbyte.report.quantities import exact, size
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words

# The bytes of a training step, from what is always there to what comes and goes.
TRAINING_PARTS = ("weights", "optimizer", "gradients", "activations", "working")


def memory_charts(report: Report, words: Words) -> list[Chart]:
    """Charts of the weights by dtype, of a training step by remat policy, and of the cache by length."""
    memory = report.memory
    charts = []
    if memory.weights:
        told = words("list").join(f"{dtype} {size(number)}" for dtype, number in memory.weights.items())
        draw = partial(_draw_weights, weights=memory.weights)
        alt = words("chart.weights.alt", model=report.name, parts=told)
        charts.append(Chart("weights", words("chart.weights"), alt, draw, height=38.0 * len(memory.weights) + 20))
    if memory.training:
        told = words("list").join(f"{each.remat} {size(each.total)}" for each in memory.training)
        first = memory.training[0]
        title = words("chart.training", rows=first.rows, length=exact(first.length))
        alt = words("chart.training.alt", model=report.name, parts=told)
        draw = partial(_draw_training, training=memory.training, words=words)
        charts.append(Chart("training-memory", title, alt, draw, height=34.0 * len(memory.training) + 70))
    elif memory.state:
        told = words("list").join(f"{words(f'memory.{part}')} {size(number)}" for part, number in memory.state.items())
        alt = words("chart.alt", title=words("chart.state"), model=report.name, parts=told)
        draw = partial(_draw_state, state=memory.state, optimizer=memory.optimizer, words=words)
        charts.append(Chart("training-state", words("chart.state"), alt, draw, height=110))
    if any(len(each.lengths) > 1 for each in memory.cache):
        told = words("list").join(f"{each.dtype} {size(each.lengths[-1][1])}" for each in memory.cache if each.lengths)
        alt = words("chart.cache.alt", model=report.name, parts=told)
        draw = partial(_draw_cache, cache=memory.cache, label=words("tokens of context"))
        charts.append(Chart("cache-memory", words("chart.cache"), alt, draw))
    return charts


def _draw_weights(figure: Any, weights: dict[str, int]) -> None:
    stacked(figure.subplots(), list(weights), [("", 0, list(weights.values()))], size, across=True)


def _draw_training(figure: Any, training: Sequence[TrainingMemory], words: Words) -> None:
    axes = figure.subplots()
    parts = [
        (words(f"memory.{name}"), colour, [getattr(each, name) for each in training])
        for colour, name in enumerate(TRAINING_PARTS)
    ]
    stacked(axes, [each.remat.replace("_", " ") for each in training], parts, size, across=True)
    legend_below(figure, axes, columns=3)


def _draw_state(figure: Any, state: dict[str, int], optimizer: str, words: Words) -> None:
    axes = figure.subplots()
    parts = [
        (words(f"memory.{name}"), colour, [state[name]]) for colour, name in enumerate(TRAINING_PARTS) if name in state
    ]
    stacked(axes, [optimizer], parts, size, across=True)
    legend_below(figure, axes, columns=3)


def _draw_cache(figure: Any, cache: Sequence[CacheMemory], label: str) -> None:
    axes = figure.subplots()
    for number, each in enumerate(cache):
        lengths, sizes = zip(*each.lengths, strict=True)
        axes.plot(lengths, sizes, "o-", markersize=3.5, color=colours.series(number), label=each.dtype)
    logarithmic(axes.xaxis, lambda value: exact(round(value)), base=2)
    axes.set_xticks([length for length, _ in max((each.lengths for each in cache), key=len)])
    logarithmic(axes.yaxis, size, base=2)
    axes.set_xlabel(label)
    axes.grid(alpha=0.8)
    legend_below(figure, axes, columns=3)

"""The floating-point operations of a token, by part and by length."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from stellarbyte.looks.chart import Chart
from stellarbyte.looks.legend import legend_below
from stellarbyte.report.charts.bars import stacked
from stellarbyte.report.flops import PARTS, Flops, Work
from stellarbyte.report.parts import colour_of
from stellarbyte.report.quantities import count, exact, flops
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words


def flops_charts(report: Report, words: Words) -> list[Chart]:
    """Charts of training by remat policy, of prefill by length, and of decoding by cached length."""
    if report.flops is None:
        return []
    counted = report.flops
    length = exact(counted.training.length)
    charts = [
        Chart(
            "training-flops",
            words("chart.flops.training", length=length),
            _told(words("chart.flops.training", length=length), report, [("", counted.training)], words),
            partial(_draw_training, counted=counted, words=words),
            height=34.0 * (1 + len(counted.recomputed)) + 84,
        )
    ]
    for phase, works in (("prefill", counted.prefill), ("decode", counted.decode)):
        if works:
            title = words(f"chart.flops.{phase}")
            told = _told(title, report, [(count(work.length, words.lang), work) for work in works], words)
            draw = partial(_draw_lengths, works=works, words=words, label=words(f"axis.{phase}"))
            charts.append(Chart(f"{phase}-flops", title, told, draw, height=245))
    return charts


def _told(title: str, report: Report, works: Sequence[tuple[str, Work]], words: Words) -> str:
    told = words("list").join(f"{name} {flops(work.total)}".strip() for name, work in works)
    return words("chart.alt", title=title, model=report.name, parts=told)


def _draw_training(figure: Any, counted: Flops, words: Words) -> None:
    """A bar for the work that training needs, and one for each policy of remat, which does some of it again."""
    axes = figure.subplots()
    bars = {words("remat.needed"): 0.0} | {name.replace("_", " "): more for name, more in counted.recomputed.items()}
    parts = [
        (words.of("work", part), colour_of(part), [counted.training.parts.get(part, 0.0)] * len(bars))
        for part in PARTS
        if part in counted.training.parts
    ]
    if any(bars.values()):
        parts.append((words("work.again"), 6, list(bars.values())))
    stacked(axes, list(bars), parts, flops, across=True)
    legend_below(figure, axes)


def _draw_lengths(figure: Any, works: Sequence[Work], words: Words, label: str) -> None:
    axes = figure.subplots()
    parts = [
        (words.of("work", part), colour_of(part), [work.parts.get(part, 0.0) for work in works])
        for part in PARTS
        if any(part in work.parts for work in works)
    ]
    stacked(axes, [_length(work.length) for work in works], parts, lambda value: flops(value, ""))
    axes.set_xlabel(label)
    legend_below(figure, axes)


def _length(tokens: int) -> str:
    """A number of tokens as a short label: 4K for 4096, 1M for 1048576."""
    for step, name in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= step and tokens % step == 0:
            return f"{tokens // step}{name}"
    return str(tokens)

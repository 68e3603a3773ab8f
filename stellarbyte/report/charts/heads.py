"""What each head is worth, how it attends, and the patterns of a few."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from stellarbyte.looks.chart import Chart
from stellarbyte.report.charts.heat import field, heat
from stellarbyte.report.measurements import AttentionFacts, AttentionPattern
from stellarbyte.report.report import Report
from stellarbyte.report.words import Words

# With more tokens than these their texts would not fit beside a pattern.
_MOST_NAMED = 26
_MOST_LETTERS = 9


def head_charts(report: Report, words: Words) -> list[Chart]:
    """The importance of each head, layer by head."""
    heads = report.measured.heads
    if heads is None:
        return []
    values = field(heads.importance)
    return [_map("head-importance", words("chart.heads"), values, report, words)]


def attention_charts(report: Report, words: Words) -> list[Chart]:
    """Entropy, distance and the share of the first token, layer by head; and the patterns."""
    facts = report.measured.attention
    if facts is None:
        return []
    charts = []
    for name, values, percent in (
        ("entropy", facts.entropy, False),
        ("distance", facts.distance, False),
        ("first_token", facts.first_token, True),
    ):
        if np.isfinite(field(values)).any():
            title = words(f"chart.attention.{name}")
            charts.append(_map(f"attention-{name.replace('_', '-')}", title, field(values), report, words, percent))
    return charts + [_pattern(pattern, facts, report, words) for pattern in facts.patterns]


def _map(name: str, title: str, values: np.ndarray, report: Report, words: Words, percent: bool = False) -> Chart:
    rows, columns = ([str(number) for number in range(count)] for count in values.shape)
    draw = partial(
        heat, values=values, columns=columns, rows=rows, labels=(words("head"), words("layer")), percent=percent
    )
    layer, head = np.unravel_index(np.nanargmax(values) if np.isfinite(values).any() else 0, values.shape)
    alt = words("chart.heads.alt", title=title, model=report.name, layer=int(layer), head=int(head))
    return Chart(name, title, alt, draw, height=225)


def _pattern(pattern: AttentionPattern, facts: AttentionFacts, report: Report, words: Words) -> Chart:
    title = words("chart.pattern", layer=pattern.layer, head=pattern.head, chosen=words.of("chosen", pattern.chosen))
    alt = words("chart.pattern.alt", title=title, model=report.name)
    draw = partial(_draw_pattern, weights=pattern.weights, tokens=facts.tokens, words=words)
    return Chart(f"attention-layer-{pattern.layer}-head-{pattern.head}", title, alt, draw, height=300)


def _draw_pattern(figure: Any, weights: Sequence[Sequence[float]], tokens: Sequence[str], words: Words) -> None:
    values = field(weights)
    values[np.triu_indices_from(values, 1)] = np.nan  # what comes later is not seen
    named = len(values) <= _MOST_NAMED
    names = [shown(token) if named else str(number) for number, token in enumerate(tokens[: len(values)])]
    heat(figure, values, names, names, (words("axis.key"), words("axis.query")), limits=(0.0, float(np.nanmax(values))))


def shown(token: str) -> str:
    """A token as a short label: spaces and line ends are seen, and a long one is cut."""
    text = "".join({" ": "␣", "\n": "↵", "\t": "⇥"}.get(each, each if each.isprintable() else "·") for each in token)
    return text if len(text) <= _MOST_LETTERS else text[: _MOST_LETTERS - 1] + "…"

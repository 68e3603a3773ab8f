"""Draws a pruned model as an SVG: perplexity over the share that is kept, and what each layer keeps."""

import math
from collections.abc import Iterator, Sequence
from html import escape

from stellarbyte.pruning.report import Layer, Report

_WIDTH, _HEIGHT = 640, 640
# The field of the points, and that of the layers' bars: left, top, right, bottom.
_POINTS, _BARS = (80, 70, 600, 330), (80, 440, 600, 590)
_COLOUR, _RECOVERED, _INNER, _FAINT = "#0072B2", "#D55E00", "#009E73", "#c4c6c8"


def pareto(title: str, reports: Sequence[Report]) -> str:
    """The SVG: points for the model before, for each report and for what was trained on; and the last one's layers."""
    drawn = [_text(24, 30, title, size=16), *_curve(reports), *_layers(reports[-1])]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _curve(reports: Sequence[Report]) -> Iterator[str]:
    """Perplexities on a logarithmic axis, as they are exponentials of losses."""
    left, top, right, bottom = _POINTS
    pruned = [(each.share, each.after.perplexity) for each in reports if not each.is_recovered]
    points = sorted([(1.0, reports[0].before.perplexity), *pruned])
    recovered = [(each.share, each.after.perplexity) for each in reports if each.is_recovered]
    losses = [math.log(perplexity) for _, perplexity in (*points, *recovered)]
    first, least, most = points[0][0], min(losses), max(losses)

    def place(share: float, perplexity: float) -> tuple[float, float]:
        along = (share - first) / max(1.0 - first, 1e-9)
        up = (math.log(perplexity) - least) / max(most - least, 1e-9)
        return left + 20 + along * (right - left - 40), bottom - 14 - up * (bottom - top - 34)

    yield from _axes(_POINTS)
    yield _text(left - 56, top - 10, "perplexity")
    yield _text((left + right) / 2, bottom + 42, f"share of the {reports[0].by} that is kept", anchor="middle")
    path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in points)
    yield f'<polyline points="{path}" fill="none" stroke="{_COLOUR}" stroke-width="1.5"/>'
    for share, perplexity in points:
        x, y = place(share, perplexity)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_COLOUR}"/>'
        yield _text(x, bottom + 18, f"{share:.0%}", anchor="middle")
        # The line falls to the right, so words stand above a point and to its right.
        yield _text(
            x + (12 if share == 1 else 6), y - 8, f"{perplexity:.4g}", anchor="middle" if share == 1 else "start"
        )
    for share, perplexity in recovered:
        x, y = place(share, perplexity)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="#ffffff" stroke="{_RECOVERED}" stroke-width="2"/>'
        yield _text(x + 9, y + 4, f"{perplexity:.4g} trained on", colour=_RECOVERED)


def _layers(report: Report) -> Iterator[str]:
    """Two bars a layer: the shares of its heads, and of its channels or experts, that are left."""
    left, top, right, bottom = _BARS
    has_experts = any(layer.experts is not None for layer in report.whole)
    inner = "experts" if has_experts else "channels"
    yield _text(left, top - 34, f"what each layer keeps at {report.share:.0%}")
    for x, name, colour in ((left, "heads", _COLOUR), (left + 70, inner, _INNER)):
        yield f'<rect x="{x}" y="{top - 25}" width="10" height="10" fill="{colour}"/>'
        yield _text(x + 14, top - 16, name)
    yield from _axes(_BARS)
    for share in (0.5, 1.0):
        y = bottom - share * (bottom - top)
        yield f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_FAINT}" stroke-dasharray="2 3"/>'
        yield _text(left - 6, y + 4, f"{share:.0%}", anchor="end")
    room = (right - left) / len(report.layers)
    width, every = min(24.0, 0.4 * room), math.ceil(len(report.layers) * 22 / (right - left))
    for number, (layer, whole) in enumerate(zip(report.layers, report.whole, strict=True)):
        middle = left + (number + 0.5) * room
        starts = middle - width, middle
        for start, share, colour in zip(starts, _shares(layer, whole), (_COLOUR, _INNER), strict=True):
            height = share * (bottom - top)
            yield (
                f'<rect x="{start:.1f}" y="{bottom - height:.1f}" width="{width:.1f}" height="{height:.1f}" '
                f'fill="{colour}"/>'
            )
        if number % every == 0:
            yield _text(middle, bottom + 16, str(number), anchor="middle")
    yield _text((left + right) / 2, bottom + 36, "layer", anchor="middle")


def _shares(layer: Layer, whole: Layer) -> tuple[float, float]:
    """The shares of a layer's heads, and of its channels or experts, that are left; none of one that is gone."""
    pairs = (layer.heads, whole.heads), (layer.channels or layer.experts, whole.channels or whole.experts)
    heads, inner = ((left or 0) / (before or 1) for left, before in pairs)
    return heads, inner


def _axes(field: tuple[int, int, int, int]) -> Iterator[str]:
    left, top, right, bottom = field
    yield f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{_FAINT}"/>'
    yield f'<line x1="{left}" y1="{top}" x2="{left}" y2="{bottom}" stroke="{_FAINT}"/>'


def _text(x: float, y: float, words: str, size: int = 12, anchor: str = "start", colour: str = "#000000") -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'

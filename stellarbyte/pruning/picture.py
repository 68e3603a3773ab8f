"""Draws perplexity over the share of a model that is kept, as an SVG."""

from collections.abc import Sequence
from html import escape

from stellarbyte.pruning.report import Report

_WIDTH, _HEIGHT = 640, 400
# The field of the points: left, top, right, bottom.
_LEFT, _TOP, _RIGHT, _BOTTOM = 80, 56, 610, 340
_COLOUR, _FAINT = "#0072B2", "#c4c6c8"


def pareto(title: str, reports: Sequence[Report]) -> str:
    """The SVG: a point for the model before, and one for each report, labelled with its share and perplexity."""
    points = [(1.0, reports[0].before.perplexity), *((each.share, each.after.perplexity) for each in reports)]
    points.sort()
    least, most = min(y for _, y in points), max(y for _, y in points)
    first, span = points[0][0], max(1.0 - points[0][0], 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        up = (y - least) / max(most - least, 1e-9)
        return _LEFT + (x - first) / span * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)

    places = [place(*point) for point in points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = [
        _text(24, 30, title, size=16),
        f'<line x1="{_LEFT}" y1="{_BOTTOM}" x2="{_RIGHT}" y2="{_BOTTOM}" stroke="{_FAINT}"/>',
        f'<line x1="{_LEFT}" y1="{_TOP}" x2="{_LEFT}" y2="{_BOTTOM}" stroke="{_FAINT}"/>',
        _text(_LEFT, _HEIGHT - 12, f"share of the {reports[0].by} that is kept"),
        _text(12, _TOP - 8, "perplexity"),
        f'<polyline points="{path}" fill="none" stroke="{_COLOUR}" stroke-width="1.5"/>',
    ]
    for (share, perplexity), (x, y) in zip(points, places, strict=True):
        drawn.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{_COLOUR}"/>')
        drawn.append(_text(x, _BOTTOM + 18, f"{share:.0%}", anchor="middle"))
        drawn.append(_text(x, y - 9, f"{perplexity:.4g}", anchor="middle"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(words)}</text>'

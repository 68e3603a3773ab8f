"""Draws which tokens of the prompt each layer kept, as an SVG file; no chart library has such a picture."""

from collections.abc import Iterator
from itertools import groupby

import numpy as np

from convert.kv_report.measuring import Line, Report
from stellarbyte.looks import colours
from stellarbyte.looks.markup import Html, tag
from stellarbyte.looks.picture import diagram

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _HEADING, _GAP = 760, 110, 20, 68, 30, 30, 8
# A panel has about this height, and a layer's row at least and at most these.
_PANEL, _THINNEST, _THICKEST = 64, 2, 14
# So many columns are drawn; each is the mean over the tokens that it stands for.
_COLUMNS = 128
# Shares are drawn in so many tones.
_TONES = 20
_KEPT = colours.series(0)


def draw(title: str, report: Report) -> str:
    """The SVG: under each budget a panel for each policy; position from left to right, the first layer on top.

    The stronger the colour, the more kv heads and passages have kept the token.
    """
    panels = [line for line in report.lines if line.kept_LP is not None]
    layers = panels[0].kept_LP.shape[0] if panels and panels[0].kept_LP is not None else 1
    row = min(_THICKEST, max(_THINNEST, _PANEL // layers))
    told = "which tokens of the prompt each layer has kept; the first layer is on top"
    drawn = [_words(_LEFT, 18, title, bold=True), _words(_LEFT, 36, told), *_legend(52)]
    y = _TOP
    for slots, of_budget in groupby(panels, key=lambda line: line.slots):
        y += _HEADING
        drawn.append(_words(_LEFT, y - 8, f"{slots} of {report.prompt_tokens} tokens"))
        for line in of_budget:
            drawn += _panel(line, y, row)
            y += layers * row + _GAP
    for place, anchor, text in ((0.0, "start", "0"), (0.5, "middle", "token"), (1.0, "end", str(report.prompt_tokens))):
        drawn.append(_words(_LEFT + place * (_WIDTH - _LEFT - _RIGHT), y + 8, text, anchor, colours.MUTED))
    return diagram((_WIDTH, y + _BOTTOM), f"{title}: {told}", drawn)


def _legend(y: int) -> Iterator[Html]:
    """The tones, and the shares of kv heads and passages that they stand for."""
    yield _words(_LEFT, y, "kept by")
    for number, share in enumerate((0.25, 0.5, 0.75, 1.0)):
        x = _LEFT + 60 + number * 70
        yield _kept(x, y - 10, 12, 12, share)
        yield _words(x + 18, y, f"{share:.0%}")
    yield _words(_LEFT + 60 + 4 * 70, y, "of kv heads and passages")


def _panel(line: Line, top: int, row: int) -> Iterator[Html]:
    assert line.kept_LP is not None
    columns = np.array_split(line.kept_LP, min(_COLUMNS, line.kept_LP.shape[1]), axis=1)
    shares_LP = np.stack([column.mean(axis=1) for column in columns], axis=1)
    width, height = _WIDTH - _LEFT - _RIGHT, len(shares_LP) * row
    yield _words(_LEFT - 10, top + height / 2 + 4, line.policy or "", "end")
    yield tag("rect", x=_LEFT, y=top, width=width, height=height, fill="none", stroke=colours.LINE)
    for layer, shares_P in enumerate(np.round(shares_LP * _TONES) / _TONES):
        column = 0
        for share, same in groupby(shares_P.tolist()):
            count = len(list(same))
            if share:
                x, wide = (number * width / len(shares_P) for number in (column, count))
                yield _kept(_LEFT + x, top + layer * row, wide, row, share)
            column += count


def _kept(x: float, y: float, width: float, height: float, share: float) -> Html:
    place = {"x": f"{x:.1f}", "y": f"{y:g}", "width": f"{width:.1f}", "height": f"{height:g}"}
    return tag("rect", **place, fill=_KEPT, opacity=f"{share:g}", shape_rendering="crispEdges")


def _words(x: float, y: float, text: str, anchor: str = "start", colour: str = colours.INK, bold: bool = False) -> Html:
    look = {"font_size": "12", "text_anchor": anchor, "fill": colour, "font_weight": "bold" if bold else None}
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", **look)

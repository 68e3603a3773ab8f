"""Draws which tokens of the prompt each layer kept, as an SVG that follows the reader's light or dark colours."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from convert.kv_report.measuring import Line, Report
from convert.svg import document, label

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM, _HEADING, _GAP = 760, 110, 20, 68, 30, 30, 8
# A panel has about this height, and a layer's row at least and at most these.
_PANEL, _THINNEST, _THICKEST = 64, 2, 14
# So many columns are drawn; each is the mean over the tokens that it stands for.
_COLUMNS = 128
# Shares are drawn in so many tones.
_TONES = 20

_STYLE = """\
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; }
.ground { fill: #ffffff; } .ink { fill: #1b1c1d; } .frame { fill: none; stroke: #d4d6d8; }
.kept { fill: #0072b2; shape-rendering: crispEdges; }
.start { text-anchor: start; } .end { text-anchor: end; } .middle { text-anchor: middle; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #16181a; } .ink { fill: #e6e8ea; } .kept { fill: #56b4e9; } .frame { stroke: #3a3d40; }
}"""


def draw(title: str, report: Report) -> str:
    """The SVG: under each budget a panel for each policy; position from left to right, the first layer on top.

    The stronger the colour, the more kv heads and passages have kept the token.
    """
    panels = [line for line in report.lines if line.kept_LP is not None]
    layers = panels[0].kept_LP.shape[0] if panels and panels[0].kept_LP is not None else 1
    row = min(_THICKEST, max(_THINNEST, _PANEL // layers))
    lines = [
        label(_LEFT, 18, "start", title),
        label(_LEFT, 36, "start", "which tokens of the prompt each layer has kept; the first layer is on top"),
        *_legend(52),
    ]
    y = _TOP
    for slots, of_budget in groupby(panels, key=lambda line: line.slots):
        y += _HEADING
        lines.append(label(_LEFT, y - 8, "start", f"{slots} of {report.prompt_tokens} tokens"))
        for line in of_budget:
            lines += _panel(line, y, row)
            y += layers * row + _GAP
    for place, anchor, text in ((0.0, "start", "0"), (0.5, "middle", "token"), (1.0, "end", str(report.prompt_tokens))):
        lines.append(label(_LEFT + place * (_WIDTH - _LEFT - _RIGHT), y + 8, anchor, text))
    return document(title, (_WIDTH, y + _BOTTOM), _STYLE, lines)


def _legend(y: int) -> Sequence[str]:
    """The tones, and the shares of kv heads and passages that they stand for."""
    drawn = [label(_LEFT, y, "start", "kept by")]
    for number, share in enumerate((0.25, 0.5, 0.75, 1.0)):
        x = _LEFT + 60 + number * 70
        drawn.append(f'<rect class="kept" x="{x}" y="{y - 10}" width="12" height="12" opacity="{share:g}"/>')
        drawn.append(label(x + 18, y, "start", f"{share:.0%}"))
    return [*drawn, label(_LEFT + 60 + 4 * 70, y, "start", "of kv heads and passages")]


def _panel(line: Line, top: int, row: int) -> Sequence[str]:
    assert line.kept_LP is not None
    columns = np.array_split(line.kept_LP, min(_COLUMNS, line.kept_LP.shape[1]), axis=1)
    shares_LP = np.stack([column.mean(axis=1) for column in columns], axis=1)
    width, height = _WIDTH - _LEFT - _RIGHT, len(shares_LP) * row
    drawn = [
        label(_LEFT - 10, top + height / 2 + 4, "end", line.policy or ""),
        f'<rect class="frame" x="{_LEFT}" y="{top}" width="{width}" height="{height}"/>',
    ]
    for layer, shares_P in enumerate(np.round(shares_LP * _TONES) / _TONES):
        column = 0
        for share, same in groupby(shares_P.tolist()):
            count = len(list(same))
            if share:
                x, wide = (number * width / len(shares_P) for number in (column, count))
                place = f'x="{_LEFT + x:.1f}" y="{top + layer * row}" width="{wide:.1f}" height="{row}"'
                drawn.append(f'<rect class="kept" {place} opacity="{share:g}"/>')
            column += count
    return drawn

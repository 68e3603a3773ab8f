"""Draws which tokens of the prompt each layer kept, as an SVG that follows the reader's light or dark colours."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np

from convert.kv_report.measuring import Line, Report
from convert.svg import document, label

_WIDTH, _LEFT, _RIGHT, _TOP, _PANEL_TOP, _PANEL_BOTTOM = 760, 150, 20, 46, 20, 26
_LAYER = 9
# So many columns are drawn; each is the mean over the tokens that it stands for.
_COLUMNS = 128
# Shares are drawn in so many tones.
_TONES = 20

_STYLE = """\
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; }
.ground { fill: #ffffff; } .ink { fill: #1b1c1d; } .kept { fill: #0072b2; } .frame { fill: none; stroke: #d4d6d8; }
.start { text-anchor: start; } .end { text-anchor: end; } .middle { text-anchor: middle; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #16181a; } .ink { fill: #e6e8ea; } .kept { fill: #56b4e9; } .frame { stroke: #3a3d40; }
}"""


def draw(title: str, report: Report) -> str:
    """The SVG: a panel for each policy and budget; position from left to right, the first layer on top.

    The stronger the colour, the more kv heads and passages have kept the token.
    """
    panels = [line for line in report.lines if line.kept_LP is not None]
    layers = panels[0].kept_LP.shape[0] if panels and panels[0].kept_LP is not None else 0
    height_of_panel = _PANEL_TOP + layers * _LAYER + _PANEL_BOTTOM
    height = _TOP + len(panels) * height_of_panel
    lines = [
        label(_LEFT, 18, "start", title),
        label(_LEFT, 36, "start", "the tokens of the prompt that each layer kept: the stronger, the more often"),
    ]
    for number, line in enumerate(panels):
        lines += _panel(line, _TOP + number * height_of_panel + _PANEL_TOP, report.prompt_tokens)
    return document(title, (_WIDTH, height), _STYLE, lines)


def _panel(line: Line, top: int, prompt: int) -> Sequence[str]:
    assert line.kept_LP is not None
    layers = len(line.kept_LP)
    columns = np.array_split(line.kept_LP, min(_COLUMNS, prompt), axis=1)
    shares = np.stack([column.mean(axis=1) for column in columns], axis=1)
    width = (_WIDTH - _LEFT - _RIGHT) / shares.shape[1]
    bottom = top + layers * _LAYER
    drawn = [
        label(_LEFT - 10, top + layers * _LAYER / 2, "end", f"{line.policy}, {line.slots} slots"),
        f'<rect class="frame" x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - _RIGHT}" height="{layers * _LAYER}"/>',
    ]
    for layer, shares_P in enumerate(np.round(shares * _TONES) / _TONES):
        column = 0
        for share, same in groupby(shares_P.tolist()):
            count, y = len(list(same)), top + layer * _LAYER
            if share:
                place = f'x="{_LEFT + column * width:.1f}" y="{y}" width="{count * width:.1f}" height="{_LAYER}"'
                drawn.append(f'<rect class="kept" {place} opacity="{share:g}"/>')
            column += count
    drawn.append(label(_LEFT, bottom + 14, "start", "0"))
    drawn.append(label(_WIDTH - _RIGHT, bottom + 14, "end", str(prompt)))
    return drawn

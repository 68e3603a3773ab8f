"""Draws the error after each layer as an SVG that follows the reader's light or dark colours."""

import math
from collections.abc import Mapping

from convert.svg import document, label

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 56, 44
# What the name of a stage that is no layer takes, and an entry of the legend.
_NAME, _ENTRY = 84, 260
# Errors from a tenth of float32's precision to what is plainly another model.
_LOWEST, _HIGHEST = -8, 0

_STYLE = """\
svg { color-scheme: light dark; font: 12px system-ui, sans-serif; }
.ground { fill: #ffffff; } .ink { fill: #1b1c1d; } .rule { stroke: #d4d6d8; } .limit { stroke-dasharray: 5 4; }
.first { stroke: #0072b2; fill: #0072b2; } .second { stroke: #d55e00; fill: #d55e00; }
polyline { fill: none !important; stroke-width: 1.8; } .start { text-anchor: start; } .end { text-anchor: end; }
.middle { text-anchor: middle; }
@media (prefers-color-scheme: dark) {
  .ground { fill: #16181a; } .ink { fill: #e6e8ea; } .rule { stroke: #3a3d40; }
  .first { stroke: #56b4e9; fill: #56b4e9; } .second { stroke: #e69f00; fill: #e69f00; }
}"""

Errors = Mapping[str, float | None]


def draw(title: str, hidden: Errors, gradients: Errors, limits: tuple[float, float]) -> str:
    """The SVG: errors relative to the largest value, on a logarithmic scale, of hidden states and of gradients.

    `limits` are what is allowed of each, drawn as dashed lines. An error that is no number stands at the top and is
    called nan.
    """
    names = list(dict.fromkeys(["embedding", *hidden, *gradients]))
    names.sort(key=_place)
    x = _columns(names)
    lines = [
        label(_LEFT, 18, "start", title),
    ]
    for power in range(_LOWEST, _HIGHEST + 1):
        lines.append(_rule(10.0**power, "rule"))
        beyond = {_LOWEST: "≤ ", _HIGHEST: "≥ "}.get(power, "")
        lines.append(label(_LEFT - 8, _y(10.0**power) + 4, "end", f"{beyond}1e{power}" if power else f"{beyond}1"))
    lines += _labels(names, x)
    for number, (name, errors, limit) in enumerate(
        (("hidden states", hidden, limits[0]), ("gradients", gradients, limits[1]))
    ):
        style = ("first", "second")[number]
        points = [(x[stage], _y(error)) for stage, error in sorted(errors.items(), key=lambda item: _place(item[0]))]
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        lines.append(_rule(limit, f"{style} limit"))
        lines.append(f'<polyline class="{style}" points="{joined}"/>')
        lines += [f'<circle class="{style}" cx="{a:.1f}" cy="{b:.1f}" r="2.6"/>' for a, b in points]
        lines += [label(x[stage] + 6, _TOP + 14, "start", "nan") for stage, error in errors.items() if error is None]
        start = _LEFT + _ENTRY * number
        lines.append(f'<circle class="{style}" cx="{start + 5}" cy="36" r="4"/>')
        lines.append(label(start + 14, 40, "start", f"{name}, allowed (dashed): 1e{math.log10(limit):.0f}"))
    return document(title, (_WIDTH, _HEIGHT), _STYLE, lines)


def _place(name: str) -> tuple[int, int]:
    """Where a stage is on its way from the tokens to the logits."""
    kind, _, number = name.partition(" ")
    order = ("positions", "embedding", "layer", "norm", "head")
    return order.index(kind), int(number or 0)


def _columns(names: list[str]) -> dict[str, float]:
    """Where each stage stands; many layers share what the others' names leave them."""
    width = _WIDTH - _LEFT - _RIGHT
    layers = sum(name.startswith("layer ") for name in names)
    others = len(names) - layers
    of_name = max(_NAME, width / len(names))
    of_layer = (width - others * of_name) / max(1, layers)
    x, end = {}, float(_LEFT)
    for name in names:
        own = of_layer if name.startswith("layer ") else of_name
        x[name], end = end + own / 2, end + own
    return x


def _labels(names: list[str], x: Mapping[str, float]) -> list[str]:
    """Some of the layers' numbers, and the other stages' names."""
    layers = [name for name in names if name.startswith("layer ")]
    step = max(1, -(-len(layers) // 16))
    kept = {name: name.removeprefix("layer ") for name in layers[::step]}
    kept |= {name: name for name in names if name in ("embedding", "head", "norm", "positions")}
    row = _HEIGHT - _BOTTOM + 16
    middle = [label((x[layers[0]] + x[layers[-1]]) / 2, row + 18, "middle", "layer")] if layers else []
    return [label(x[name], row, "middle", text) for name, text in kept.items()] + middle


def _y(error: float | None) -> float:
    power = math.log10(error) if error else (_LOWEST if error == 0 else _HIGHEST)
    share = (min(max(power, _LOWEST), _HIGHEST) - _LOWEST) / (_HIGHEST - _LOWEST)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _rule(error: float, style: str) -> str:
    y = _y(error)
    return f'<line class="{style}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'

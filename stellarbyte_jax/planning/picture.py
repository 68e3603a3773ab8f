"""Draws a plan's memory: one bar for each chip, part by part, and a line for what the chip has."""

import math
from html import escape

from stellarbyte.chips import GIB
from stellarbyte_jax.planning.plan import Plan

_WIDTH, _HEIGHT = 860, 440
# The field of the bars: left, top, right, bottom.
_FIELD = 64, 84, 560, 396
_LEGEND, _LEGEND_END = 600, 836
_MOST_BARS = 16

# What stays is blue, what layers keep and compute is green, weights on their way are yellow and red, the loss is brown.
_COLORS = {
    "parameters": "#1f4e79",
    "frozen": "#7d8fa3",
    "teacher": "#55617a",
    "optimizer": "#4f8fc4",
    "batch": "#a9cbe6",
    "micro_batches": "#7a5ba8",
    "activations": "#2a9d6f",
    "weight_copies": "#e3a008",
    "gradients": "#c8553d",
    "working": "#93d4b6",
    "exchanged": "#cf85bb",
    "gathered": "#f3d675",
    "logits": "#8a6a43",
    "head": "#c9ae88",
}


def memory_picture(plan: Plan) -> str:
    """An SVG of the bars, with a legend in bytes."""
    parts = {name: size for name, size in plan.memory.parts().items() if size}
    drawn = [*_titles(plan), *_scale(plan), *_bars(plan, parts), *_limit(plan), *_legend(plan, parts)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, Helvetica, Arial, sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def _titles(plan: Plan) -> list[str]:
    training, total, hbm = plan.config.training, plan.memory.total, plan.topology.chip.hbm_bytes
    chips = "its one chip" if plan.topology.size == 1 else f"each of {plan.topology.size} chips"
    verdict = "fits" if plan.fits else "does not fit"
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"
    return [
        _text(
            24,
            34,
            f"{plan.topology}: {total / GIB:.2f} of {hbm / GIB:.2f} GiB on {chips}, {verdict}",
            size=17,
            bold=True,
        ),
        _text(
            24,
            56,
            f"{plan.parameters / 1e9:.3g} B parameters on {mesh}; {training.batch_size} rows of "
            f"{plan.config.data.sequence_length} tokens a step, {training.dtype}, remat {training.remat}",
            color="#555555",
        ),
    ]


def _scale(plan: Plan) -> list[str]:
    left, _, right, bottom = _FIELD
    most = max(plan.memory.total, plan.topology.chip.hbm_bytes) / GIB
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if most / (power * factor) <= 6)
    drawn, tick = [], 0.0
    while tick <= most:
        y = _height(plan, tick * GIB)
        drawn.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e4e4e4"/>')
        drawn.append(_text(left - 8, y + 4, f"{tick:g}", color="#555555", anchor="end"))
        tick += step
    drawn.append(_text(left - 8, _FIELD[1] - 8, "GiB", color="#555555", anchor="end"))
    return [*drawn, f'<line x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}" stroke="#333333"/>']


def _bars(plan: Plan, parts: dict[str, int]) -> list[str]:
    left, _, right, bottom = _FIELD
    size = plan.topology.size
    shown = min(size, _MOST_BARS)
    room = (right - left) / max(shown, 4)
    drawn = []
    for chip in range(shown):
        x, below = left + (chip + 0.12) * room, 0
        for name, amount in parts.items():
            top, foot = _height(plan, below + amount), _height(plan, below)
            below += amount
            drawn.append(
                f'<rect x="{x:.1f}" y="{top:.2f}" width="{0.76 * room:.1f}" height="{foot - top:.2f}" '
                f'fill="{_COLORS[name]}"><title>{escape(_named(name, amount))}</title></rect>'
            )
        drawn.append(_text(x + 0.38 * room, bottom + 16, str(chip), color="#555555", anchor="middle"))
    more = f"chips 0 to {shown - 1}; the other {size - shown} hold the same" if shown < size else "chips"
    return [*drawn, _text((left + right) / 2, bottom + 33, more, color="#555555", anchor="middle")]


def _limit(plan: Plan) -> list[str]:
    left, _, right, _ = _FIELD
    y = _height(plan, plan.topology.chip.hbm_bytes)
    label = f"{plan.topology.chip.name} has {plan.topology.chip.hbm_bytes / GIB:.2f} GiB"
    width = 7 * len(label)
    return [
        f'<rect x="{right - width}" y="{y - 21:.1f}" width="{width}" height="18" rx="3" fill="#ffffff" '
        'fill-opacity="0.88"/>',
        f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#b3261e" stroke-width="1.5" '
        'stroke-dasharray="6 4"/>',
        _text(right - 5, y - 8, label, "#b3261e", "end"),
    ]


def _legend(plan: Plan, parts: dict[str, int]) -> list[str]:
    """The legend, in the order of the bars from the top down."""
    drawn = [_text(_LEGEND, _FIELD[1] - 8, f"during {plan.memory.moment}", color="#555555")]
    y = _FIELD[1] + 16
    for name, amount in reversed(parts.items()):
        drawn.append(f'<rect x="{_LEGEND}" y="{y - 10}" width="12" height="12" rx="2" fill="{_COLORS[name]}"/>')
        drawn.append(_text(_LEGEND + 20, y, name.replace("_", " ")))
        drawn.append(_text(_LEGEND_END, y, f"{amount / GIB:.3f} GiB", anchor="end"))
        y += 22
    drawn.append(f'<line x1="{_LEGEND}" x2="{_LEGEND_END}" y1="{y - 11}" y2="{y - 11}" stroke="#333333"/>')
    drawn.append(_text(_LEGEND + 20, y + 5, "total", bold=True))
    drawn.append(_text(_LEGEND_END, y + 5, f"{plan.memory.total / GIB:.3f} GiB", anchor="end", bold=True))
    return drawn


def _height(plan: Plan, amount: float) -> float:
    _, top, _, bottom = _FIELD
    return bottom - (bottom - top) * amount / (1.04 * max(plan.memory.total, plan.topology.chip.hbm_bytes))


def _named(name: str, size: int) -> str:
    return f"{name.replace('_', ' ')} {size / GIB:.3f} GiB"


def _text(
    x: float, y: float, text: str, color: str = "#222222", anchor: str = "start", size: int = 12, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" text-anchor="{anchor}" font-size="{size}"{weight}>'
        f"{escape(text)}</text>"
    )

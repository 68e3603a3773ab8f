"""A plan in words, and its memory as bars."""

from html import escape

from stellarbyte_jax.chips import GIB
from stellarbyte_jax.planning.compile_ahead import Compiled
from stellarbyte_jax.planning.plan import Plan
from stellarbyte_jax.planning.search import describe

_BAR_COLUMNS = 40


def plan_text(plan: Plan, tokens: float | None = None, price: float | None = None) -> str:
    """What `stellarbyte plan` prints."""
    return "\n".join((*_opening(plan), "", *_memory(plan), "", *_speed(plan), *_cost(plan, tokens, price)))


def _opening(plan: Plan) -> list[str]:
    training, model = plan.config.training, plan.config.model
    parameters = f"{plan.parameters / 1e9:.3f} B parameters"
    if plan.active_parameters != plan.parameters:
        parameters += f" ({plan.active_parameters / 1e9:.3f} B at work on each token)"
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    rows = training.batch_size // training.gradient_accumulation_steps
    micro_batches = "" if rows == training.batch_size else f", {rows} rows at once"
    return [
        f"{plan.topology}: {plan.topology.size} chips ({mesh}), {training.dtype}, {plan.kernel} attention",
        f"{parameters}, {model.num_hidden_layers} layers; {training.batch_size} rows of "
        f"{plan.config.data.sequence_length} tokens a step{micro_batches}",
    ]


def _memory(plan: Plan) -> list[str]:
    memory, hbm = plan.memory, plan.topology.chip.hbm_bytes
    largest = max(memory.total, hbm)
    lines = [f"memory of one chip at its fullest, during {memory.moment}, GiB"]
    for name, size in (*memory.parts().items(), ("total", memory.total), ("chip has", int(hbm))):
        bar = "█" * round(_BAR_COLUMNS * size / largest)
        lines.append(f"  {name.replace('_', ' '):<15} {size / GIB:8.3f} {bar}".rstrip())
    missing = memory.total - hbm
    verdict = f"does not fit: {missing / GIB:.2f} GiB too much" if missing > 0 else "fits"
    return [*lines, f"  {verdict}"]


def _speed(plan: Plan) -> list[str]:
    flops, roofline = plan.flops, plan.roofline
    times = {"compute": roofline.compute, "HBM": roofline.hbm}
    times |= {f"interconnect, mesh.{axis}": seconds for axis, seconds in roofline.interconnect.items()}
    return [
        f"one step: {flops.model:.4g} FLOPs of the model ({flops.attention / flops.model:.0%} attention), "
        f"{flops.executed:.4g} executed",
        "roofline, seconds a step of each at its full rate; only for mesh.tensor's sums the rest waits",
        *(f"  {name:<26} {seconds:9.4f}" for name, seconds in times.items()),
        f"at most {plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%}, {roofline.step_seconds:.3f} s a step",
        f"what binds: {plan.binds}",
    ]


def _cost(plan: Plan, tokens: float | None, price: float | None) -> list[str]:
    if tokens is None:
        return []
    hours, dollars = plan.cost(tokens, price)
    rate = plan.topology.chip.price if price is None else price
    cost = (
        "no list price is known: give --price"
        if dollars is None
        else f"{dollars:,.0f} US dollars at {rate} a chip and hour"
    )
    return [f"{tokens:.4g} tokens: at least {hours:,.1f} hours, {cost}"]


def search_text(plans: list[Plan]) -> str:
    """A table of plans."""
    lines = ["GiB a chip  tokens/s at most    MFU  what binds                   settings"]
    for plan in plans:
        lines.append(
            f"{plan.memory.total / GIB:10.2f} {plan.tokens_per_second:17,.0f} {plan.mfu:6.1%}  {plan.binds:<28} "
            f"{describe(plan)}"
        )
    return "\n".join(lines)


def compiled_text(plan: Plan, compiled: Compiled) -> str:
    """The compiler's own figures beside the prediction."""
    memory, program = plan.memory, compiled.program
    lines = ["the TPU compiler's own analysis, GiB        predicted  compiled  error of the prediction"]
    for name, ours, theirs in (
        ("arguments", memory.arguments, compiled.arguments),
        ("temporaries", memory.temporaries, compiled.temporaries),
        ("total, gaps between arrays included", memory.total, compiled.total),
        ("alive at once, at most", memory.total, compiled.peak),
    ):
        lines.append(f"  {name:<41} {ours / GIB:9.3f} {theirs / GIB:9.3f}  {ours / theirs - 1:+.1%}")
    lines.append("collectives of one chip a step")
    for kind, collective in program.collectives.items():
        lines.append(f"  {kind:<24} {collective.count:8,} times {collective.bytes / GIB:9.3f} GiB")
    if not program.collectives:
        lines.append("  none")
    kernels = f", without {program.kernels:,} calls of Mosaic kernels" if program.kernels else ""
    return "\n".join([*lines, f"estimated cycles a step: {program.cycles / 1e9:.3f} G{kernels}"])


def memory_picture(plan: Plan) -> str:
    """An SVG of one bar a chip: its parts, against what the chip has."""
    memory, hbm = plan.memory, plan.topology.chip.hbm_bytes
    width, height, left, top, shown = 760, 300, 56, 40, min(plan.topology.size, 16)
    scale = height / (1.05 * max(memory.total, hbm))
    step = (width - left - 200) / shown
    drawn = []
    for chip in range(shown):
        bottom = float(top + height)
        for (name, size), color in zip(memory.parts().items(), _COLORS, strict=True):
            bottom -= size * scale
            drawn.append(
                f'<rect x="{left + chip * step:.1f}" y="{bottom:.2f}" width="{0.8 * step:.1f}" '
                f'height="{size * scale:.2f}" fill="{color}"><title>{_label(name, size)}</title></rect>'
            )
    line = top + height - hbm * scale
    drawn.append(f'<line x1="{left}" x2="{width - 200}" y1="{line:.2f}" y2="{line:.2f}" stroke="#c00"/>')
    drawn.append(_text(width - 194, line + 4, f"{plan.topology.chip.name} has {hbm / GIB:.2f} GiB", "#c00"))
    for row, ((name, size), color) in enumerate(zip(memory.parts().items(), _COLORS, strict=True)):
        y = top + height - 18 * row
        drawn.append(f'<rect x="{width - 194}" y="{y - 10}" width="12" height="12" fill="{color}"/>')
        drawn.append(_text(width - 176, y, _label(name, size)))
    more = "" if shown == plan.topology.size else f", the first {shown} of {plan.topology.size} equal ones"
    title = f"{plan.topology}: {memory.total / GIB:.2f} GiB a chip{more}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + top + 20}" font-family="sans-serif" '
        f'font-size="12">\n{_text(left, 20, title)}\n' + "\n".join(drawn) + "\n</svg>\n"
    )


# Okabe & Ito's, which colour-blind people tell apart, and three greys.
_COLORS = (
    *("#0072b2", "#56b4e9", "#333333", "#666666", "#009e73", "#f0e442"),
    *("#d55e00", "#e69f00", "#8c564b", "#cc79a7", "#999999"),
)


def _label(name: str, size: int) -> str:
    return f"{name.replace('_', ' ')} {size / GIB:.3f} GiB"


def _text(x: float, y: float, text: str, color: str = "#000") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}">{escape(text)}</text>'

"""Draws a plan's memory: part by part up to what a chip needs, and what it has."""

from functools import partial
from typing import Any

from stellarbyte.chips import GIB
from stellarbyte.looks import colours
from stellarbyte.looks.chart import Chart
from stellarbyte_jax.planning.plan import Plan

_WIDTH, _ROW, _FRAME = 520, 20, 110

# What stays, what layers keep and compute, weights on their way, and the loss: part -> the number of its colour.
_COLOURS = {
    **dict.fromkeys(("parameters", "frozen", "teacher", "optimizer", "batch"), 0),
    **dict.fromkeys(("micro_batches", "activations", "working"), 2),
    **dict.fromkeys(("weight_copies", "gradients", "exchanged", "gathered"), 4),
    **dict.fromkeys(("logits", "head"), 8),
}


def memory_chart(plan: Plan) -> Chart:
    """A bar for each part, which begins where the one above it ends; below them the whole, and a line for the chip."""
    total, hbm = plan.memory.total / GIB, plan.topology.chip.hbm_bytes / GIB
    chips = "its one chip" if plan.topology.size == 1 else f"each of {plan.topology.size} chips"
    verdict = "fits" if plan.fits else "does not fit"
    title = f"{plan.topology}: {total:.2f} of {hbm:.2f} GiB on {chips}, {verdict}"
    parts = {name: size / GIB for name, size in plan.memory.parts().items() if size}
    told = ", ".join(f"{name.replace('_', ' ')} {size:.3f}" for name, size in parts.items())
    draw = partial(_draw, plan=plan, parts=parts)
    return Chart("memory", title, f"{title}; GiB of the parts: {told}", draw, _WIDTH, _FRAME + _ROW * len(parts))


def _draw(figure: Any, plan: Plan, parts: dict[str, float]) -> None:
    axes = figure.subplots()
    chip, total = plan.topology.chip, plan.memory.total / GIB
    hbm = chip.hbm_bytes / GIB
    most, below = max(total, hbm), 0.0
    rows = [*((name, size, colours.series(_COLOURS[name])) for name, size in parts.items()), ("total", total, None)]
    for row, (_, size, colour) in enumerate(rows):
        start = 0.0 if colour is None else below
        axes.barh(row, size, 0.72, left=start, color=colour or colours.MUTED)
        axes.text(
            start + size + 0.01 * most,
            row,
            f"{size:.3f}",
            va="center",
            fontsize=9.5,
            color=colours.MUTED,
            bbox={"facecolor": colours.GROUND, "linewidth": 0, "pad": 1},  # the chip's line may be behind it
        )
        below += size
    axes.axvline(hbm, color=colours.BAD, linestyle="--", linewidth=1.2)
    axes.annotate(
        f"{chip.name} has {hbm:.2f} GiB",
        (hbm, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right" if hbm > 0.5 * most else "left",
        color=colours.BAD,
    )
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name, *_ in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * most)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(f"GiB during {plan.memory.moment}")
    axes.grid(axis="x", alpha=0.8)
    axes.set_title(_about(plan) + "\n", loc="left", color=colours.MUTED, fontsize=9.5)


def _about(plan: Plan) -> str:
    training = plan.config.training
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"
    return (
        f"{plan.parameters / 1e9:.3g} B parameters on {mesh}\n{training.batch_size} rows of "
        f"{plan.config.data.sequence_length} tokens a step, {training.dtype}, remat {training.remat}"
    )

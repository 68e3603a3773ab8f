"""Writes a plan in words."""

from collections.abc import Sequence
from typing import Any

from stellarbyte.chips import GIB
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.planning.auto_remat import MOST_OF_HBM
from stellarbyte_jax.planning.compile_ahead import Compiled, CompiledHere
from stellarbyte_jax.planning.memory import Memory
from stellarbyte_jax.planning.plan import Plan
from stellarbyte_jax.planning.roofline import WAITED_FOR
from stellarbyte_jax.planning.search import describe

_BAR_COLUMNS = 40


def plan_text(plan: Plan, tokens: float | None = None, price: float | None = None) -> str:
    """The text that `stellarbyte plan` prints."""
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
        f"{plan.topology}: {plan.topology.size} chips ({mesh}), {training.dtype}, {plan.kernel} attention, "
        f"remat {training.remat}",
        f"{parameters}, {model.num_hidden_layers} layers; {training.batch_size} rows of "
        f"{plan.config.data.sequence_length} tokens a step{micro_batches}",
    ]


def _memory(plan: Plan) -> list[str]:
    memory, hbm = plan.memory, plan.topology.chip.hbm_bytes
    largest = max(memory.total, hbm)
    lines = [f"memory of one chip at its fullest, during {memory.moment}, GiB"]
    for name, size in (*_there(memory).items(), ("total", memory.total), ("chip has", int(hbm))):
        bar = "█" * round(_BAR_COLUMNS * size / largest)
        lines.append(f"  {name.replace('_', ' '):<15} {size / GIB:8.3f} {bar}".rstrip())
    missing = memory.total - hbm
    verdict = f"does not fit: {missing / GIB:.2f} GiB too much" if missing > 0 else "fits"
    if plan.offloaded:
        lines.append(f"  beside it {plan.offloaded / GIB:.3f} GiB of activations in the host's memory")
    return [*lines, f"  {verdict}"]


def _speed(plan: Plan) -> list[str]:
    flops, roofline = plan.flops, plan.roofline
    lines = [
        f"one step: {flops.model:.4g} FLOPs of the model ({flops.attention / flops.model:.0%} attention), "
        f"{flops.executed:.4g} executed",
        "roofline: seconds a step that each takes at its full rate; they run beside each other",
        f"  {'compute':<26} {roofline.compute:9.4f}",
        f"  {'HBM':<26} {roofline.hbm:9.4f}",
    ]
    if plan.offloaded:
        lines.append(f"  {'host':<26} {roofline.host:9.4f}")
    for axis, seconds in roofline.interconnect.items():
        waits = ", which compute waits for" if axis in WAITED_FOR else ""
        received = f"{plan.received.get(axis, 0.0) / GIB:.3f} GiB to each chip"
        lines.append(f"  {f'interconnect, mesh.{axis}':<26} {seconds:9.4f}  {received}{waits}")
    return [
        *lines,
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


def policies_text(plans: Sequence[Plan], chosen: Plan) -> str:
    """The text on what each remat policy would need, and which one auto takes."""
    policy = chosen.config.training.remat
    why = "the fastest that fits with a twentieth of the HBM to spare"
    if chosen.memory.total > chosen.topology.chip.hbm_bytes * MOST_OF_HBM:
        why = "none leaves a twentieth of the HBM free, and it needs least"
    lines = [f"training.remat auto: {policy}, {why}", "  policy                GiB a chip  s a step at least"]
    for plan in plans:
        name = plan.config.training.remat
        marks = (" <-" if name == policy else "") + ("" if plan.fits else "  does not fit")
        lines.append(f"  {name:<20} {plan.memory.total / GIB:11.2f} {plan.roofline.step_seconds:18.3f}{marks}")
    return "\n".join(lines)


def search_text(plans: Sequence[Plan]) -> str:
    """A table of plans, and the options that select the first."""
    axes = [axis for axis in plans[0].mesh if any(plan.mesh[axis] > 1 for plan in plans)] or ["data"]
    meshes = " ".join(f"{axis:>7}" for axis in axes)
    lines = [f"   GiB    tokens/s    MFU {meshes} steps  remat               what binds"]
    for plan in plans:
        training, sizes = plan.config.training, " ".join(f"{plan.mesh[axis]:7}" for axis in axes)
        lines.append(
            f"{plan.memory.total / GIB:6.2f} {plan.tokens_per_second:11,.0f} {plan.mfu:6.1%} {sizes} "
            f"{training.gradient_accumulation_steps:5}  {training.remat:<19} {plan.binds}"
        )
    return "\n".join(
        [
            f"{plans[0].topology}: what fits, the fastest first; each needs less memory of a chip than those above it",
            *lines,
            f"the first: {describe(plans[0])}",
        ]
    )


def compiled_text(plan: Plan, compiled: Compiled) -> str:
    """The compiler's own figures beside the predicted ones."""
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


def here_facts(config: RunConfig, compiled: CompiledHere, available: float | None) -> dict[str, Any]:
    """The memory of a train step on one CPU of a machine that has so many bytes, for JSON."""
    training = config.training
    steps = training.gradient_accumulation_steps
    return {
        "topology": "cpu",
        "remat": training.remat,
        "dtype": training.dtype,
        "rows_at_once": training.batch_size // steps,
        "sequence_length": config.data.sequence_length,
        "arguments": compiled.arguments,
        "temporaries": compiled.temporaries,
        "total": compiled.total,
        "machine": None if available is None else int(available),
    }


def here_text(facts: dict[str, Any]) -> str:
    """What `stellarbyte plan --topology cpu` prints."""
    lines = [
        f"this machine's CPU, {facts['dtype']}, remat {facts['remat']}, {facts['rows_at_once']} rows of "
        f"{facts['sequence_length']} tokens at once",
        "memory of a train step by XLA's own compiler, GiB",
        f"  {'state and batch':<15} {facts['arguments'] / GIB:8.3f}",
        f"  {'temporaries':<15} {facts['temporaries'] / GIB:8.3f}",
        f"  {'total':<15} {facts['total'] / GIB:8.3f}",
    ]
    if facts["machine"] is None:
        return "\n".join(lines)
    missing = facts["total"] - facts["machine"]
    verdict = f"does not fit: {missing / GIB:.2f} GiB too much" if missing > 0 else "fits"
    return "\n".join([*lines, f"  {'machine has':<15} {facts['machine'] / GIB:8.3f}", f"  {verdict}"])


def _there(memory: Memory) -> dict[str, int]:
    return {name: size for name, size in memory.parts().items() if size}

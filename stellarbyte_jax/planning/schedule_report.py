"""Tells and draws the learning rate of a run, step by step; it needs no JAX."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stellarbyte_jax.batch_stages import stage_of
from stellarbyte_jax.planning.run_parts import Part, part_of
from stellarbyte_jax.training.schedules import Phase, learning_rate_schedule, phases

_MOST_ROWS = 12
_COLUMNS, _LINES = 64, 8
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def schedule_facts(parts: Sequence[Part]) -> dict[str, Any]:
    """The schedule for JSON: its type, its phases, and about a dozen steps with their learning rates.

    Where batches or rows grow, or were amended, each of these steps has their sizes too.
    """
    last = parts[-1].config
    found = _phases(parts)
    sizes = _size_changes(parts)
    edges = [step for phase in found for step in (phase.first, phase.last)]
    steps = _telling_steps([*edges, *(step for step in sizes if step > 1)], last.training.max_steps)
    names = [next(phase.name for phase in found if phase.first <= step <= phase.last) for step in steps]
    rows: list[dict[str, Any]] = [
        {"step": step, "learning_rate": rate, "phase": name}
        for step, rate, name in zip(steps, _rates(parts, steps), names, strict=True)
    ]
    if len(sizes) > 1:
        for row in rows:
            batch_size, sequence_length = sizes[max(step for step in sizes if step <= row["step"])]
            row |= {"batch_size": batch_size, "sequence_length": sequence_length}
    facts = {
        "lr_scheduler_type": last.optimizer.lr_scheduler_type,
        "max_steps": last.training.max_steps,
        "phases": [{"name": phase.name, "first_step": phase.first, "last_step": phase.last} for phase in found],
        "steps": rows,
    }
    amended = [{"after_step": part.start, "changes": part.changes} for part in parts if part.changes]
    return facts | ({"amendments": amended} if amended else {})


def schedule_text(parts: Sequence[Part]) -> str:
    """The schedule as a drawing in characters and a table."""
    facts = schedule_facts(parts)
    spans = ", ".join(f"{phase['name']} {phase['first_step']}-{phase['last_step']}" for phase in facts["phases"])
    lines = [f"{facts['lr_scheduler_type']}, {facts['max_steps']} steps: {spans}"]
    lines += [f"amended after step {part.start}: {part.changes}" for part in parts if part.changes]
    lines += ["", *_drawing(parts), ""]
    grows = "batch_size" in facts["steps"][0]
    sizes = f" {'batch':>7} {'tokens a row':>13}" if grows else ""
    lines.append(f"{'step':>10} {'learning rate':>14}{sizes}  phase")
    for row in facts["steps"]:
        sizes = f" {row['batch_size']:>7} {row['sequence_length']:>13}" if grows else ""
        lines.append(f"{row['step']:>10} {row['learning_rate']:>14.4g}{sizes}  {row['phase']}")
    return "\n".join(lines)


def _phases(parts: Sequence[Part]) -> list[Phase]:
    """The phases of all parts, each as far as its part goes."""
    ends = [*(part.start for part in parts[1:]), parts[-1].config.training.max_steps]
    found = []
    for part, end in zip(parts, ends, strict=True):
        for name, first, last in phases(part.config.optimizer, part.config.training.max_steps):
            if (first := max(first, part.start + 1)) <= (last := min(last, end)):
                found.append(Phase(name, first, last))
    return found


def _size_changes(parts: Sequence[Part]) -> dict[int, tuple[int, int]]:
    """The first step of each size of batches, counted from 1 -> (rows of the data, tokens in a row)."""
    starts = {part.start for part in parts}
    for part, end in zip(parts, [*(after.start for after in parts[1:]), None], strict=True):
        starts |= {
            stage.start
            for stage in part.config.stages
            if part.start <= stage.start < (part.config.training.max_steps if end is None else end)
        }
    found: dict[int, tuple[int, int]] = {}
    for start in sorted(starts):
        stage = stage_of(part_of(parts, start + 1).config.stages, start)
        size = (stage.batch_size, stage.sequence_length)
        if not found or size != [*found.values()][-1]:
            found[start + 1] = size
    return found


def _telling_steps(edges: list[int], max_steps: int) -> list[int]:
    """About a dozen steps, ascending: first and last steps of phases unless these are too many, and others between."""
    steps = set(edges) if len(set(edges)) <= _MOST_ROWS else {min(edges), max_steps}
    others = np.linspace(1, max_steps, _MOST_ROWS - len(steps) + 2)[1:-1]
    return sorted(steps | {round(step) for step in others.tolist()})


def _rates(parts: Sequence[Part], steps: Sequence[int]) -> list[float]:
    schedules = {
        part.start: learning_rate_schedule(part.config.optimizer, part.config.training.max_steps, np) for part in parts
    }
    rates = [schedules[part_of(parts, step).start](np.asarray(step - 1)) for step in steps]
    return [float(str(rate)) for rate in rates]  # float32's own few digits


def _drawing(parts: Sequence[Part]) -> list[str]:
    """A bar for each of at most _COLUMNS steps, from 0 to the highest peak."""
    max_steps = parts[-1].config.training.max_steps
    peak = max(part.config.optimizer.learning_rate for part in parts)
    columns = min(_COLUMNS, max_steps)
    steps = [round(step) for step in np.linspace(1, max_steps, columns).tolist()]
    # A rate above 0 shows at least the lowest bar.
    heights = [max(round(8 * _LINES * rate / peak), int(rate > 0)) for rate in _rates(parts, steps)]
    labels = [f"{peak:.4g}", *[""] * (_LINES - 1)]
    lines = []
    for line, label in zip(range(_LINES - 1, -1, -1), labels, strict=True):
        bars = "".join(_EIGHTHS[min(max(height - 8 * line, 0), 8)] for height in heights)
        lines.append(f"{label:>10} {bars}".rstrip())
    return [*lines, f"{'step':>10} 1{max_steps:>{max(columns - 1, 1)}}"]

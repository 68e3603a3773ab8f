"""Tells and draws the learning rate of a run, step by step; it needs no JAX."""

from typing import Any

import numpy as np

from stellarbyte_jax.config import OptimizerConfig, RunConfig
from stellarbyte_jax.training.schedules import learning_rate_schedule, phases

_MOST_ROWS = 12
_COLUMNS, _LINES = 64, 8
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def schedule_facts(config: RunConfig) -> dict[str, Any]:
    """The schedule for JSON: its type, its phases, and about a dozen steps with their learning rates."""
    optimizer, max_steps = config.optimizer, config.training.max_steps
    found = phases(optimizer, max_steps)
    steps = _telling_steps([step for phase in found for step in (phase.first, phase.last)], max_steps)
    names = [next(phase.name for phase in found if phase.first <= step <= phase.last) for step in steps]
    rates = _rates(optimizer, max_steps, steps)
    rows = [
        {"step": step, "learning_rate": rate, "phase": name}
        for step, rate, name in zip(steps, rates, names, strict=True)
    ]
    return {
        "lr_scheduler_type": optimizer.lr_scheduler_type,
        "max_steps": max_steps,
        "phases": [{"name": phase.name, "first_step": phase.first, "last_step": phase.last} for phase in found],
        "steps": rows,
    }


def schedule_text(config: RunConfig) -> str:
    """The schedule as a drawing in characters and a table."""
    facts, max_steps = schedule_facts(config), config.training.max_steps
    spans = ", ".join(f"{phase['name']} {phase['first_step']}-{phase['last_step']}" for phase in facts["phases"])
    lines = [f"{facts['lr_scheduler_type']}, {max_steps} steps: {spans}", "", *_drawing(config), ""]
    lines.append(f"{'step':>10} {'learning rate':>14}  phase")
    lines += [f"{row['step']:>10} {row['learning_rate']:>14.4g}  {row['phase']}" for row in facts["steps"]]
    return "\n".join(lines)


def _telling_steps(edges: list[int], max_steps: int) -> list[int]:
    """About a dozen steps, ascending: first and last steps of phases unless these are too many, and others between."""
    steps = set(edges) if len(set(edges)) <= _MOST_ROWS else {1, max_steps}
    others = np.linspace(1, max_steps, _MOST_ROWS - len(steps) + 2)[1:-1]
    return sorted(steps | {round(step) for step in others.tolist()})


def _rates(optimizer: OptimizerConfig, max_steps: int, steps: list[int]) -> list[float]:
    rates = learning_rate_schedule(optimizer, max_steps, np)(np.asarray(steps) - 1)
    return [float(str(rate)) for rate in rates]  # float32's own few digits


def _drawing(config: RunConfig) -> list[str]:
    """A bar for each of at most _COLUMNS steps, from 0 to the peak."""
    max_steps, peak = config.training.max_steps, config.optimizer.learning_rate
    columns = min(_COLUMNS, max_steps)
    steps = [round(step) for step in np.linspace(1, max_steps, columns).tolist()]
    rates = _rates(config.optimizer, max_steps, steps)
    # A rate above 0 shows at least the lowest bar.
    heights = [max(round(8 * _LINES * rate / peak), int(rate > 0)) for rate in rates]
    labels = [f"{peak:.4g}", *[""] * (_LINES - 1)]
    lines = []
    for line, label in zip(range(_LINES - 1, -1, -1), labels, strict=True):
        bars = "".join(_EIGHTHS[min(max(height - 8 * line, 0), 8)] for height in heights)
        lines.append(f"{label:>10} {bars}".rstrip())
    return [*lines, f"{'step':>10} 1{max_steps:>{max(columns - 1, 1)}}"]

"""Shows the list of a run's checkpoints as a table or as JSON."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.filesize import decimal

from stellarbyte.errors import one_line
from stellarbyte_jax.checkpoints.listing import Listed


def listing_json(listed: Sequence[Listed], beside: Mapping[str, str]) -> dict[str, Any]:
    """The list and what is beside it, ready for JSON; sizes in bytes, ages in seconds, times in ISO 8601."""
    now = datetime.now(UTC)
    return {
        "checkpoints": [
            {
                "step": each.step,
                "saved_at": None if each.saved_at is None else each.saved_at.isoformat(timespec="seconds"),
                "age_seconds": None if each.saved_at is None else round((now - each.saved_at).total_seconds(), 1),
                "bytes": each.bytes,
                "metrics": each.metrics,
                "kept_by": each.kept_by,
                "damage": each.damage,
            }
            for each in listed
        ],
        "beside": dict(beside),
    }


def listing_text(listed: Sequence[Listed], beside: Mapping[str, str], *, verified: bool) -> str:
    """The list as a table, one checkpoint a line, and what is beside it.

    After a verification it says of each checkpoint whether it is whole.
    """
    others = [f"beside them {name}: {what}" for name, what in beside.items()]
    if not listed:
        return "\n".join(["no checkpoint of a pretraining run", *others])
    head = ["step", "age", "size", "loss", "bits/byte", *(["state"] if verified else []), "kept as"]
    rows = [head, *(_row(each, verified) for each in listed)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = []
    for row in rows:
        numbers = (cell.rjust(width) for cell, width in zip(row[:5], widths, strict=False))
        words = (cell.ljust(width) for cell, width in zip(row[5:], widths[5:], strict=True))
        lines.append("  ".join((*numbers, *words)).rstrip())
    return "\n".join([*lines, *others])


def _row(listed: Listed, verified: bool) -> list[str]:
    age = "?" if listed.saved_at is None else _age((datetime.now(UTC) - listed.saved_at).total_seconds())
    figures = [listed.metrics.get(f"validation_{name}") for name in ("loss", "bits_per_byte")]
    numbers = ["" if figure is None else f"{figure:.4f}" for figure in figures]
    state = "whole" if listed.damage is None else f"damaged: {one_line(listed.damage)}"
    kept = ", ".join(listed.kept_by) or "nothing: the next save deletes it"
    return [str(listed.step), age, decimal(listed.bytes), *numbers, *([state] if verified else []), kept]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"

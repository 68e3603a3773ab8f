"""What a terminal shows of an evaluation, and its JSON."""

from collections.abc import Mapping
from typing import Any

from stellarbyte.evaluation.choices import TaskFigures
from stellarbyte.evaluation.comparing import Comparison
from stellarbyte.evaluation.figures import BINS
from stellarbyte.evaluation.measuring import Measured

# The figures of a line, in the order of its columns: the key in to_dict, the heading, and the format.
_COLUMNS = (
    ("documents", "documents", "{:,}"),
    ("bytes", "bytes", "{:,}"),
    ("tokens", "tokens", "{:,}"),
    ("bits_per_byte", "bits/byte", "{:.4f}"),
    ("loss", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:,.2f}"),
    ("word_perplexity", "of words", "{:.6g}"),
    ("accuracy", "accuracy", "{:.4f}"),
    ("calibration_error", "calibration", "{:.4f}"),
)
_WIDEST = 40


def measured_text(measured: Measured) -> str:
    """The figures of every domain and of all together, as a table."""
    rows = [["domain", *(heading for _, heading, _ in _COLUMNS)]]
    rows += [_cells(name, figures.to_dict()) for name, figures in measured.domains.items()]
    if len(measured.domains) > 1:
        rows.append(_cells("all", measured.whole.to_dict()))
    return "\n".join([*_head(measured), *_aligned(rows), _LEGEND])


def comparison_text(ours: Measured, theirs: Measured, found: Comparison) -> str:
    """The figures of both models, and what is between them."""
    names = [_name(side.facts) for side in (ours, theirs)]
    return "\n\n".join([measured_text(ours), measured_text(theirs), found.sentence(*names)])


_LEGEND = f"bits/byte and perplexities: less is better. calibration: the expected calibration error, {BINS} bins."


def head(facts: Mapping[str, Any]) -> str:
    """Which model it is, and what it is computed in."""
    return f"{_name(facts)}, {facts['dtype']}"


def questions_text(facts: Mapping[str, Any], found: Mapping[str, TaskFigures]) -> str:
    """The figures of tasks as a table."""
    rows = [["task", "questions", "accuracy", "", "by bytes"]]
    for name, figures in found.items():
        shares = f"{figures.accuracy:.4f}", f"± {figures.error:.4f}", f"{figures.accuracy_by_bytes:.4f}"
        rows.append([name, f"{figures.questions:,}", *shares])
    return "\n".join([head(facts), *_aligned(rows)])


def _name(facts: Mapping[str, Any]) -> str:
    step = facts.get("step")
    return str(facts["model"]) + (f" (step {step})" if step is not None else "")


def _head(measured: Measured) -> list[str]:
    windows = measured.windows
    how = f"windows of {windows.window} tokens, {windows.stride} of them scored in each but the first"
    return [f"{head(measured.facts)}; {how}"]


def _cells(name: str, figures: Mapping[str, Any]) -> list[str]:
    name = name if len(name) <= _WIDEST else f"…{name[1 - _WIDEST :]}"
    return [name, *(form.format(figures[key]) for key, _, form in _COLUMNS)]


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    ]

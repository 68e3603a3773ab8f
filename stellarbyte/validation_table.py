"""Says how a validation went: each figure, how it has changed, and the best so far."""

from collections.abc import Mapping, Sequence
from typing import Any

from stellarbyte.figures import FIGURES, VALIDATION, Figure, figures_in, finite, in_words

# A validation's step -> its figures, such as {"validation_loss": 2.1}.
Validations = Mapping[int, Mapping[str, Any]]


def table_rows(step: int, record: Mapping[str, Any], earlier: Validations) -> list[Sequence[str]]:
    """A row for each figure: its name, its value, the change since the validation before, and the best so far."""
    before = _before(step, earlier)
    rows: list[Sequence[str]] = []
    for figure in figures_in(record, VALIDATION):
        value, old = (finite(each.get(VALIDATION + figure.name)) for each in (record, before))
        if value is None:
            rows.append((figure.label, "not finite", "", ""))
            continue
        change = "" if old is None else f"{_change(figure, value, old)} {_verdict(figure, value - old)}".rstrip()
        best = best_of(figure, {**earlier, step: record})
        assert best is not None
        where = "the best so far" if best[0] == step else f"best {figure.number(best[1])} at step {best[0]}"
        rows.append((figure.label, figure.number(value), change, where))
    return rows


def line_words(step: int, record: Mapping[str, Any], earlier: Validations) -> list[str]:
    """The same in a few words: each figure with its change, and the best loss if this one is not."""
    before = _before(step, earlier)
    words = []
    for figure, text in zip(figures_in(record, VALIDATION), in_words(record, VALIDATION), strict=True):
        value, old = (finite(each.get(VALIDATION + figure.name)) for each in (record, before))
        words.append(text if value is None or old is None else f"{text} ({_change(figure, value, old)})")
    loss = FIGURES[0]
    best = best_of(loss, {**earlier, step: record})
    return words if best is None or best[0] == step else [*words, f"best {loss.in_words(best[1])} at step {best[0]}"]


def best_of(figure: Figure, validations: Validations) -> tuple[int, float] | None:
    """The step and the value of the best validation by a figure, the first of equals; None if none has it."""
    key = VALIDATION + figure.name
    values = {step: finite(each.get(key)) for step, each in sorted(validations.items())}
    known = {step: value for step, value in values.items() if value is not None}
    if not known:
        return None
    step = (max if figure.better == "more" else min)(known, key=lambda step: known[step])
    return step, known[step]


def _before(step: int, earlier: Validations) -> Mapping[str, Any]:
    return earlier[max(steps)] if (steps := [each for each in earlier if each < step]) else {}


def _change(figure: Figure, value: float, old: float) -> str:
    number = figure.number(value - old)
    return number if number.startswith("-") else f"+{number}"


def _verdict(figure: Figure, change: float) -> str:
    if not change:
        return ""
    return "better" if (change > 0) == (figure.better == "more") else "worse"

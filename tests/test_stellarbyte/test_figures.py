"""The table of figures: what is read by it, and that the docs say the same."""

import re
from pathlib import Path

import pytest

from stellarbyte.figures import (
    FIGURES,
    NORM_GROUPS,
    VALIDATION,
    figure_of,
    figures_in,
    finite,
    greater_is_better,
    in_words,
    split_name,
    value_of,
)

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_each_figure_is_named_once() -> None:
    names = [figure.name for figure in FIGURES]
    assert len(set(names)) == len(names)
    assert all(len(re.findall(r"\{[^}]*\}", figure.shown)) == 1 for figure in FIGURES if figure.shown)


def test_the_docs_have_the_table() -> None:
    of = {"step": "steps", "validation": "validations", "both": "both"}
    rows = [f"| `{each.name}` | {each.unit} | {of[each.of]} | {each.meaning} |" for each in FIGURES]
    assert re.findall(r"^\| `[a-z].*", PAGE.read_text(encoding="utf-8"), re.MULTILINE) == rows


def test_keys_of_records() -> None:
    assert figure_of("loss") is figure_of("validation_loss") is figure_of("eval_loss")
    assert figure_of("bits_per_byte") is None and figure_of("validation_learning_rate") is None
    assert all(figure_of(f"update_norm_{group}") is not None for group in NORM_GROUPS)
    assert figure_of("update_norm_everything") is None
    assert split_name("eval_loss") == split_name("validation_loss") == (True, "loss")
    assert all(value_of({name: 2.0}, "validation_loss") == 2.0 for name in ("eval_loss", "validation_loss"))
    assert value_of({"loss": 2.0}, "validation_loss") is None


def test_in_words() -> None:
    record = {"tokens_per_second": 1234.5, "loss": 2.0, "perplexity": None, "host_bytes": 5, "mfu": 0.5}
    assert in_words(record) == ["loss 2.0000", "perplexity not finite", "1,234 tokens/s", "MFU 50.0%"]
    assert in_words({"loss": 2.0, "tokens_per_second": None}) == ["loss 2.0000"], "the first step has no rate"
    assert in_words({"validation_loss": 2.0, "loss": 1.0}, VALIDATION) == ["loss 2.0000"]
    names = ("loss", "perplexity", "accuracy", "bits_per_byte", "tokens", "seconds")
    shown = figures_in(dict.fromkeys((VALIDATION + name for name in names), 1.0), VALIDATION)
    assert [figure.label for figure in shown] == ["loss", "perplexity", "accuracy", "bits/byte"]


def test_figures_of_tasks() -> None:
    record = {"validation_task_arc-easy": 0.5, "validation_loss": 2.0, "validation_task_arc-easy_by_bytes": 0.25}
    assert in_words(record, VALIDATION) == ["loss 2.0000", "arc-easy 0.500", "arc-easy by bytes 0.250"]
    assert in_words(record) == []
    figure = figure_of("validation_task_arc-easy_by_bytes")
    assert figure is not None and (figure.better, figure.number(0.125)) == ("more", "0.125")
    assert greater_is_better("validation_task_x")
    assert all(figure_of(name) is None for name in ("task_x", "validation_task_", "validation_tusk_x"))


@pytest.mark.parametrize("value", [None, "1", [1], True, float("nan"), float("inf"), 10**400])
def test_what_is_no_number(value: object) -> None:
    assert finite(value) is None

"""Changes are against the validation before, and the best is the best of all."""

from stellarbyte.figures import FIGURES
from stellarbyte.validation_table import best_of, line_words, table_rows

EARLIER = {
    0: {"validation_loss": 3.0, "validation_accuracy": 0.1},
    10: {"validation_loss": 1.0, "validation_accuracy": 0.6},
    20: {"validation_loss": 2.0, "validation_accuracy": 0.4},
}


def test_a_table() -> None:
    rows = table_rows(30, {"validation_loss": 1.5, "validation_accuracy": 0.7, "validation_tokens": 9.0}, EARLIER)
    assert rows == [
        ("loss", "1.5000", "-0.5000 better", "best 1.0000 at step 10"),
        ("accuracy", "0.700", "+0.300 better", "the best so far"),
    ]
    ((*_, change, best),) = table_rows(30, {"validation_loss": 2.25}, EARLIER)
    assert (change, best) == ("+0.2500 worse", "best 1.0000 at step 10")


def test_a_line() -> None:
    assert line_words(0, {"validation_loss": 3.0}, {}) == ["loss 3.0000"]
    assert line_words(10, {"validation_loss": 1.0}, {0: EARLIER[0]}) == ["loss 1.0000 (-2.0000)"]
    words = line_words(30, {"validation_loss": 1.5, "validation_accuracy": 0.7}, EARLIER)
    assert words == ["loss 1.5000 (-0.5000)", "accuracy 0.700 (+0.300)", "best loss 1.0000 at step 10"]


def test_what_is_no_number_has_no_change() -> None:
    broken = {20: {"validation_loss": "x"}, 10: {"validation_loss": 10**400}}
    assert table_rows(30, {"validation_loss": 1.5}, broken) == [("loss", "1.5000", "", "the best so far")]
    assert table_rows(30, {"validation_loss": None}, EARLIER) == [("loss", "not finite", "", "")]
    assert line_words(30, {"validation_loss": None}, EARLIER) == ["loss not finite", "best loss 1.0000 at step 10"]
    assert best_of(FIGURES[0], broken) is None

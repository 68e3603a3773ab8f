"""The figures by which the best checkpoints are told are those of the table, and those of the run's tasks."""

import pytest

from stellarbyte.errors import UserError
from stellarbyte.figures import JUDGING
from stellarbyte_jax.checkpoint_config import CheckpointConfig


def judged_by(metric: str) -> CheckpointConfig:
    return CheckpointConfig(keep_best=1, metric_for_best_model=metric)


def test_the_best_is_told_by_any_figure_of_a_validation() -> None:
    assert JUDGING == (
        "validation_loss",
        "validation_perplexity",
        "validation_accuracy",
        "validation_bits_per_byte",
    )
    names = (*JUDGING, "validation_task_quiz", "validation_task_quiz_by_bytes")
    assert [name for name in names if judged_by(name).greater_is_better] == ["validation_accuracy", *names[-2:]]


@pytest.mark.parametrize("metric", ["loss", "validation_seconds", "validation_grad_norm", "validation_", "task_quiz"])
def test_other_figures_are_refused(metric: str) -> None:
    with pytest.raises(
        UserError, match=rf"metric_for_best_model '?{metric}'? is no figure of a validation .* use one of"
    ):
        judged_by(metric)


def test_a_task_must_be_one_that_the_run_asks() -> None:
    judged_by("validation_task_quiz").check_metric(["a/quiz.jsonl.gz"])
    judged_by("validation_task_quiz_by_bytes").check_metric(["other.jsonl", "quiz.jsonl"])
    judged_by("validation_accuracy").check_metric([])
    with pytest.raises(UserError, match=r"quizz is of a task that .* does not ask: use validation_task_quiz or valid"):
        judged_by("validation_task_quizz").check_metric(["quiz.jsonl"])
    with pytest.raises(UserError, match=r"add its file there, or use validation_loss"):
        judged_by("validation_task_quiz").check_metric([])

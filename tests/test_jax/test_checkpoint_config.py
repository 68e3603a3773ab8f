"""The figures by which the best checkpoints are told are those of the table."""

from typing import get_args, get_type_hints

from stellarbyte.figures import FIGURES, VALIDATION
from stellarbyte_jax.checkpoint_config import CheckpointConfig


def test_the_best_is_told_by_any_figure_of_a_validation() -> None:
    names = get_args(get_type_hints(CheckpointConfig)["metric_for_best_model"])
    judging = (figure for figure in FIGURES if figure.better and figure.of != "step" and "TASK" not in figure.name)
    assert names == tuple(VALIDATION + figure.name for figure in judging)
    greater = [name for name in names if CheckpointConfig(keep_best=1, metric_for_best_model=name).greater_is_better]
    assert greater == ["validation_accuracy"]

"""The figures by which the best checkpoints are told are those of the table."""

from typing import get_args, get_type_hints

from stellarbyte.figures import metrics_for_best_model
from stellarbyte_jax.checkpoint_config import CheckpointConfig


def test_the_best_is_told_by_any_figure_of_a_validation() -> None:
    names = get_args(get_type_hints(CheckpointConfig)["metric_for_best_model"])
    assert names == metrics_for_best_model()
    greater = [name for name in names if CheckpointConfig(keep_best=1, metric_for_best_model=name).greater_is_better]
    assert greater == ["validation_accuracy"]

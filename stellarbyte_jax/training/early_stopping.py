"""Ends a run whose validations do not get better any more."""

import math
from collections.abc import Mapping
from typing import Any

from stellarbyte_jax.config import RunConfig


def stops_early(config: RunConfig, validations: Mapping[int, Mapping[str, Any]]) -> str | None:
    """Why a run with these validations ends now, in a sentence without its end; None if it goes on.

    It counts as Transformers' EarlyStoppingCallback does: a validation is an improvement if its figure is better than
    the best so far by more than the threshold, and the best is the best figure, by whatever difference. A figure that
    is not finite is no improvement. The validation before the first step counts as the first one.

    Args:
        config: the run's.
        validations: the figures of all validations so far, by step; None stands for one that is not finite.
    """
    patience, threshold = config.training.early_stopping_patience, config.training.early_stopping_threshold
    if patience is None:
        return None
    metric, sign = config.checkpoint.metric_for_best_model, 1 if config.checkpoint.greater_is_better else -1
    best: float | None = None
    best_step, without = 0, 0
    for step, figures in sorted(validations.items()):
        value = figures.get(metric)
        gain = 0.0 if value is None else math.inf if best is None else sign * (value - best)
        without = 0 if gain > threshold else without + 1
        if gain > 0:
            best, best_step = value, step
        if without >= patience:
            times = "the last validation has" if patience == 1 else f"{patience} validations in a row have"
            by = f" by more than {threshold:g}" if threshold else ""
            was = "there was none that is finite" if best is None else f"the best is {best:.6g}, of step {best_step}"
            return (
                f"stopped early: up to step {step} {times} not improved {metric}{by} ({was}); a greater "
                f"training.early_stopping_patience than {patience} goes on"
            )
    return None

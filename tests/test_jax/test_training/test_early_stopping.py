"""A run stops early where Transformers' callback would stop it, and says so again if it is started again."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stellarbyte_jax.checkpoints.checkpoint import latest_step
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.training import validation
from stellarbyte_jax.training.early_stopping import stops_early
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.runs import bits, records

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]
PATIENT = {"early_stopping_patience": 2, "early_stopping_threshold": 0.1}


def stopped_at(config: RunConfig, values: list[float | None], metric: str = "validation_loss") -> int | None:
    """The number of the validation after which the run ends."""
    for count in range(1, len(values) + 1):
        if stops_early(config, {step: {metric: value} for step, value in enumerate(values[:count])}) is not None:
            return count
    return None


@pytest.mark.long  # Transformers takes long to import
@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
@pytest.mark.parametrize("seed", range(10))
def test_it_counts_as_transformers_does(metric: str, seed: int, run_config: MakeConfig) -> None:
    transformers = pytest.importorskip("transformers")
    config = run_config(training=PATIENT, checkpoint={"metric_for_best_model": metric})
    generator = np.random.default_rng(seed)
    values = (np.cumsum(generator.normal(0, 0.1, 30)) + np.linspace(0, 1, 30)).tolist()
    if metric == "validation_loss":
        values = [-value for value in values]

    callback = transformers.EarlyStoppingCallback(2, 0.1)
    greater = metric == "validation_accuracy"
    args = SimpleNamespace(metric_for_best_model=metric, greater_is_better=greater)
    state, control = SimpleNamespace(best_metric=None), SimpleNamespace(should_training_stop=False)
    expected = None
    for count, value in enumerate(values, 1):
        callback.on_evaluate(args, state, control, {f"eval_{metric}": value})
        if state.best_metric is None or (value > state.best_metric) == greater:  # as the Trainer does after it
            state.best_metric = value
        if control.should_training_stop:
            expected = count
            break
    assert stopped_at(config, values, metric) == expected


def test_a_figure_that_is_not_finite_or_within_the_threshold_is_no_improvement(run_config: MakeConfig) -> None:
    config = run_config(training={"early_stopping_patience": 2})
    assert stopped_at(config, [None, None]) == 2
    assert stopped_at(config, [2.0, None, 1.0, None, None]) == 5
    assert stopped_at(run_config(), [None] * 9) is None
    small_steps = [2.0, 1.95, 1.9, 1.7, 1.65]
    assert stopped_at(run_config(training=PATIENT), small_steps) == 3
    assert stopped_at(run_config(training={"early_stopping_patience": 2}), small_steps) is None
    why = stops_early(config, {0: {"validation_loss": 2.0}, 5: {"validation_loss": 2.5}, 9: {"validation_loss": 2.1}})
    assert why == (
        "stopped early: up to step 9 2 validations in a row have not improved validation_loss (the best is 2, of step "
        "0); a greater training.early_stopping_patience than 2 goes on"
    )


@pytest.mark.usefixtures("one_device")
def test_a_run_ends_early_saved_and_stays_so_until_it_is_more_patient(
    run_config: MakeConfig, finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """It goes on from step 12 of a run that was as patient as any."""
    shutil.copytree(finished_run, run_config().output_dir)
    shutil.rmtree(Path(run_config().output_dir) / "checkpoints" / "12")
    first = records(finished_run)
    config = run_config(training={"eval_steps": 1, "early_stopping_patience": 1}, checkpoint={"save_steps": 5})
    evaluated: list[float] = []

    def evaluate(*_: object) -> dict[str, float]:
        evaluated.append(5.0)
        return {"loss": 5.0, "accuracy": 0.5, "bits_per_byte": 1.0, "tokens": 1.0}

    monkeypatch.setattr(validation, "evaluate", evaluate)
    assert pretrain(config)
    # The best is that of step 6, so the validation of step 10, which is due at once, is no improvement.
    assert latest_step(config.output_dir) == 10 and len(evaluated) == 1
    assert "stopped early: up to step 10 the last validation has not improved" in capsys.readouterr().out
    assert pretrain(config)
    assert latest_step(config.output_dir) == 10 and len(evaluated) == 1
    assert "stopped early: up to step 10 the last" in capsys.readouterr().out

    patient = dataclasses.replace(config, training=dataclasses.replace(config.training, early_stopping_patience=2))
    assert pretrain(patient)
    assert latest_step(config.output_dir) == 11, "which is no step of save_steps"
    patient = dataclasses.replace(config, training=dataclasses.replace(config.training, early_stopping_patience=9))
    assert pretrain(patient)
    assert [record for record in records(config.output_dir) if "loss" in record] == [
        record for record in first if "loss" in record
    ]
    assert bits(config.output_dir) == bits(finished_run)

"""A run that was stopped at any moment and goes on ends as one that never was."""

import copy
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from stellarbyte_torch.finetune import run as finetuning_run
from stellarbyte_torch.finetune.checkpoints import newest_checkpoint
from stellarbyte_torch.finetune.progress import FinetuneProgress
from stellarbyte_torch.finetune.resumable_trainer import ResumableTrainer

from ..finetuning import config, metrics, model_folder, run

NAMES = ("steps", "best_step", "train_loss_first", "train_loss_last", "validation_loss_before", "validation_loss_after")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def signal_at(method: str, step: int, patch: pytest.MonkeyPatch, batch: int = 0) -> None:
    """A SIGTERM when the progress display is told of an event in this step, and at this batch of a validation."""
    patch.undo()
    told = getattr(FinetuneProgress, method)

    def telling(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        told(self, args, state, control, **kwargs)
        if (state.global_step, self._batches) == (step, batch):
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(FinetuneProgress, method, telling)


def assert_alike(one: Path, other: Path) -> None:
    assert metrics(one) == metrics(other)
    weights = "adapter/adapter_model.safetensors"
    assert (one / weights).read_bytes() == (other / weights).read_bytes()


# 10 validation rows are 5 batches; 5 steps are an epoch.
STEPS = {"per_device_eval_batch_size": 2}
EPOCHS = {**STEPS, "eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}
# So high a rate that step 1 is the best.
EARLY = {**STEPS, "eval_steps": 1, "learning_rate": 0.3, "warmup_steps": 0, "max_grad_norm": 0.0}
PLATEAU = {
    **STEPS,
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"patience": 0},
    "eval_steps": 1,
}


@pytest.mark.parametrize(
    ("training", "changes", "stops"),
    [
        (STEPS, {}, (3, 6, 8)),
        (EPOCHS, {}, (5, 10)),
        (EARLY, {"early_stopping_patience": 3}, (1, 2, 4)),
        (PLATEAU, {}, (2, 3, 4)),
    ],
    ids=["steps", "epochs", "early", "plateau"],
)
def test_a_validation_is_left_and_done_later(
    training: dict[str, Any],
    changes: dict[str, Any],
    stops: tuple[int, ...],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def settings(name: str) -> Any:
        return config(folder, tmp_path / name, training=copy.deepcopy(training), **changes)

    whole, _ = run(settings("whole"))
    assert whole["steps"] == stops[-1] or training is PLATEAU
    for step in stops:
        signal_at("on_prediction_step", step, monkeypatch, batch=2)
        summary, printed = run(settings("parts"))
        assert not summary["finished"]
        assert f"stopped after step {step}, saved in {tmp_path / 'parts'}: the same command goes on" in printed
        assert metrics(tmp_path / "parts")[-1].keys() >= {"step", "loss"}  # without the validation
    # Stopped once more in the validation that is done late.
    summary, printed = run(settings("parts"))
    assert not summary["finished"] and "stopped after step" in printed
    monkeypatch.undo()
    summary, _ = run(settings("parts"))
    assert {name: summary[name] for name in NAMES} == {name: whole[name] for name in NAMES}
    assert_alike(tmp_path / "parts", tmp_path / "whole")


def test_the_validation_before_training_is_left(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_at("on_prediction_step", 0, monkeypatch, batch=2)
    summary, printed = run(config(folder, tmp_path, training=STEPS))
    assert not summary["finished"] and "stopped before the first step: the same command goes on" in printed
    assert metrics(tmp_path) == []
    assert newest_checkpoint(tmp_path) is None


def test_a_stop_amid_an_epoch_is_not_its_end(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(folder, tmp_path / "whole", training=EPOCHS))
    signal_at("on_step_end", 3, monkeypatch)
    run(config(folder, tmp_path / "parts", training=EPOCHS))
    assert [record["step"] for record in metrics(tmp_path / "parts") if "eval_loss" in record] == [0]
    monkeypatch.undo()
    run(config(folder, tmp_path / "parts", training=EPOCHS))
    assert_alike(tmp_path / "parts", tmp_path / "whole")


def test_what_is_said_to_be_saved_is_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_at("on_evaluate", 2, monkeypatch)
    _, printed = run(config(folder, tmp_path, training={**EARLY, "save_total_limit": 1}))
    assert "stopped after step 3, saved in" in printed
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"checkpoint-1", "checkpoint-3"}  # the best and the newest


@pytest.mark.parametrize("changes", [{}, {"early_stopping_patience": 3}], ids=["steps", "early"])
def test_a_run_at_its_end_trains_no_further(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    settings = config(folder, tmp_path / "run", training=EARLY if changes else STEPS, **changes)
    whole, _ = run(settings)
    assert whole["steps"] % 5 != 0  # amid an epoch
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    shutil.rmtree(tmp_path / "run" / "adapter")  # as if killed before it was saved
    (tmp_path / "run" / "summary.json").unlink()
    again, _ = run(settings)
    assert again["steps"] == whole["steps"]
    assert_alike(tmp_path / "run", tmp_path / "whole")


def test_a_signal_while_the_result_is_saved_comes_too_late(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card = finetuning_run.write_card

    def interrupted(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write_card(*args, **kwargs)

    monkeypatch.setattr(finetuning_run, "write_card", interrupted)
    summary, _ = run(config(folder, tmp_path, training=STEPS))
    assert summary["finished"] and (tmp_path / "summary.json").exists()


def test_a_second_signal_leaves_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def insisting(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(ResumableTrainer, "_save_checkpoint", insisting)
    with pytest.raises(KeyboardInterrupt):
        run(config(folder, tmp_path, training=STEPS))

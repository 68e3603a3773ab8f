"""A run that was stopped at any moment and goes on ends as one that never was."""

import copy
import errno
import io
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import MixtralConfig, MixtralForCausalLM

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte_torch.finetune import run as finetuning_run
from stellarbyte_torch.finetune.checkpoints import newest_checkpoint
from stellarbyte_torch.finetune.interrupt import Interrupt
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
        pytest.param(EPOCHS, {}, (5, 10), marks=pytest.mark.long),
        pytest.param(EARLY, {"early_stopping_patience": 3}, (1, 2, 4), marks=pytest.mark.long),
        pytest.param(PLATEAU, {}, (2, 3, 4), marks=pytest.mark.long),
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
    assert [record["step"] for record in metrics(tmp_path / "parts") if "validation_loss" in record] == [0]
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


@pytest.mark.long
def test_weights_that_a_file_names_otherwise(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mixtral's experts are one tensor in the model and many in a file: Trainer would go on with those of the start."""
    sizes: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(tmp_path / "mixtral")

    def settings(name: str, **changes: Any) -> Any:
        training = {**EARLY, "max_steps": 4, "lr_scheduler_type": "constant", "learning_rate": 0.6, **changes}
        made = config(folder, tmp_path / name, lora=None, data={"tokenizer": str(folder)}, training=training)
        return replace(made, model=str(tmp_path / "mixtral"))

    whole, _ = run(settings("whole"))
    assert whole["best_step"] < 4
    saved, _ = run(replace(settings("saved"), model=str(tmp_path / "whole" / "model")))
    assert saved["validation_loss_before"] == pytest.approx(whole["validation_loss_after"], rel=1e-6)
    signal_at("on_step_end", 2, monkeypatch)
    run(settings("parts"))
    monkeypatch.undo()
    run(settings("parts"))
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_a_second_signal_leaves_at_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def insisting(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    monkeypatch.setattr(ResumableTrainer, "_save_checkpoint", insisting)
    with pytest.raises(KeyboardInterrupt):
        run(config(folder, tmp_path, training=STEPS))


class _Leaving(io.StringIO):
    """A reader who leaves at a word, or a terminal that is closed then, which also sends a signal."""

    def __init__(self, word: str, number: int | None) -> None:
        super().__init__()
        self.word, self.number = word, number

    def write(self, text: str) -> int:
        if self.word in text:
            if self.number is not None:
                os.kill(os.getpid(), self.number)
            self.word, self.number = "", None
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("number", [None, signal.SIGHUP], ids=["reader", "terminal"])
def test_an_output_that_takes_nothing_any_more_loses_no_step(number: int | None, folder: Path, tmp_path: Path) -> None:
    run(config(folder, tmp_path / "whole", training=STEPS))
    settings = config(folder, tmp_path / "parts", training=STEPS)
    display = Display(console=Console(file=_Leaving("step 6/8  validation", number), width=1000))
    interrupt = Interrupt()
    if number is None:
        with pytest.raises(UserError, match=r"cannot be written: .*; stopped after step 7, saved in"):
            finetuning_run.finetune(settings, display, interrupt)
    else:
        assert not finetuning_run.finetune(settings, display, interrupt)["finished"]
        assert interrupt.number == number
    run(settings)
    assert_alike(tmp_path / "parts", tmp_path / "whole")

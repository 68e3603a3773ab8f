"""Damage to a run's folder: seen before anything is read, told, and stepped over to the newest whole checkpoint."""

import copy
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import MANIFEST, write_manifest
from stellarbyte_torch.finetune.checkpoints import checkpoint_to_resume, newest_checkpoint, rotate
from stellarbyte_torch.finetune.progress import FinetuneProgress
from stellarbyte_torch.finetune.report import is_summary
from stellarbyte_torch.finetune.trainer import FinetuneTrainer
from tiers import short_tier

from ..finetuning import LORA, config, metrics, model_folder, run

FULL: dict[str, Any] = {"lora": None}
DROPOUT: dict[str, Any] = {"lora": {**LORA, "lora_dropout": 0.2}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


class Killed(BaseException):
    pass


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End a run as a kill would, in the step after `step`."""
    monkeypatch.undo()
    on_step_end = FinetuneProgress.on_step_end

    def ending(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == step + 1:
            raise Killed

    monkeypatch.setattr(FinetuneProgress, "on_step_end", ending)


@pytest.fixture(scope="module")
def killed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were killed after checkpoint 6, with checkpoint 3 before it; and the same, uninterrupted."""
    made = {}
    for name, changes in (("lora", DROPOUT), ("full", FULL)):
        for kind in ("whole", "killed"):
            made[f"{name} {kind}"] = output = tmp_path_factory.mktemp(name)
            settings = config(folder, output / "run", **copy.deepcopy(changes))
            if kind == "whole":
                run(settings)
                continue
            with pytest.MonkeyPatch.context() as patch:
                stop_after(6, patch)
                with pytest.raises(Killed):
                    run(settings)
    return made


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], None]] = {"flipped": flip, "halved": halve, "gone": Path.unlink}


@pytest.mark.parametrize(
    ("kind", "name", "damage"),
    [
        ("lora", "adapter_model.safetensors", "flipped"),
        ("full", "optimizer.pt", "gone"),
        *(
            pytest.param(kind, name, damage, marks=pytest.mark.long)
            for kind, weights in (("lora", "adapter_model.safetensors"), ("full", "model.safetensors"))
            for name in (weights, "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST)
            for damage in DAMAGES
        ),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_trains_alike(
    kind: str, name: str, damage: str, folder: Path, killed: dict[str, Path], tmp_path: Path
) -> None:
    output = shutil.copytree(killed[f"{kind} killed"] / "run", tmp_path / "run")
    DAMAGES[damage](output / "checkpoints" / "checkpoint-6" / name)
    settings = config(folder, output, **copy.deepcopy(DROPOUT if kind == "lora" else FULL))
    summary, printed = run(settings)
    if name == MANIFEST and damage == "gone":  # which is what a kill while it is written leaves
        assert "checkpoint-6 was not written to its end: passed over" in printed
    else:
        assert f"checkpoint-6 is damaged ({name} " in printed and "set aside as damaged-checkpoint-6" in printed
        assert (output / "checkpoints" / "damaged-checkpoint-6").is_dir()
    assert "going on after step 3" in printed
    whole = killed[f"{kind} whole"] / "run"
    assert metrics(output) == metrics(whole)
    assert summary["finished"] and json.loads((whole / "summary.json").read_text())["steps"] == summary["steps"]
    result = "adapter/adapter_model.safetensors" if kind == "lora" else "model/model.safetensors"
    assert (output / result).read_bytes() == (whole / result).read_bytes()


def test_no_whole_checkpoint_is_left(folder: Path, killed: dict[str, Path], tmp_path: Path) -> None:
    output = shutil.copytree(killed["lora killed"] / "run", tmp_path / "run")
    for step in (3, 6):
        flip(output / "checkpoints" / f"checkpoint-{step}" / "optimizer.pt")
    _, printed = run(config(folder, output, **copy.deepcopy(DROPOUT)))
    assert printed.count("set aside as damaged-") == 2 and "going on" not in printed
    assert metrics(output) == metrics(killed["lora whole"] / "run")


def arguments(folder: Path, processes: int = 1) -> TrainingArguments:
    made = TrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none")
    assert made.world_size == processes
    return made


def checkpoint(run_dir: Path, name: str, *, step: int | None = None, best: int | None = None) -> Path:
    folder = run_dir / "checkpoints" / name
    folder.mkdir(parents=True)
    counts = {"max_steps": 300, "num_train_epochs": 1, "train_batch_size": 4, "log_history": []}
    state = {"global_step": step, "best_global_step": best, **counts}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if step is not None:
        write_manifest(folder, {"processes": 1})
    return folder


def test_other_folders_are_nobodys_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    for name in ("checkpoint-foo", "checkpoint-00150", "checkpoint-", "checkpoint--5", "checkpoint-7x", "other-9"):
        checkpoint(tmp_path, name, step=150)
    (tmp_path / "checkpoints" / "checkpoint-200").write_text("a file")
    assert newest_checkpoint(tmp_path) is None
    assert checkpoint_to_resume(tmp_path, arguments(tmp_path), said.append) is None
    kept = checkpoint(tmp_path, "checkpoint-9", step=9)
    checkpoint(tmp_path, "checkpoint-10")
    assert checkpoint_to_resume(tmp_path, arguments(tmp_path), said.append) == kept
    assert len(said) == 1 and "checkpoint-10 was not written to its end" in said[0]
    assert checkpoint_to_resume(tmp_path / "nowhere", arguments(tmp_path), said.append) is None


def test_a_checkpoint_under_another_name(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoint(tmp_path, "checkpoint-20", step=2)
    assert checkpoint_to_resume(tmp_path, arguments(tmp_path), said.append) is None
    assert "checkpoint-20 is damaged (it holds step 2): set aside as damaged-checkpoint-20" in said[0]


def forged(folder: Path, name: str, content: bytes) -> None:
    """Another file, noted as if it had always been there."""
    (folder / name).write_bytes(content)
    write_manifest(folder, {"processes": 1})


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"max_steps": 10**30}, "its max_steps is 1000000"),
        ({"train_batch_size": None}, "its train_batch_size is null"),
        ({"num_train_epochs": "x"}, "its num_train_epochs is 'x'"),
        ({"log_history": [[1]]}, "its log_history is no list of records"),
        ({"global_step": True}, "it holds step true"),
    ],
)
def test_a_state_that_no_trainer_has_written(fields: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    said: list[str] = []
    folder = checkpoint(tmp_path, "checkpoint-2", step=2)
    state = json.loads((folder / "trainer_state.json").read_text())
    forged(folder, "trainer_state.json", json.dumps(state | fields).encode())
    assert checkpoint_to_resume(tmp_path, arguments(tmp_path), said.append) is None
    assert complaint in said[0]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize(
    "name", short_tier(["optimizer.pt", "scheduler.pt", "rng_state.pth", "adapter_model.safetensors"], 0, 3)
)
def test_a_forged_checkpoint_is_neither_run_nor_a_traceback(
    name: str, folder: Path, killed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate((pickle.dumps(_Evil()), b"", bytes(range(256)))):
        output = shutil.copytree(killed["lora killed"] / "run", tmp_path / str(number))
        forged(output / "checkpoints" / "checkpoint-6", name, content)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Detected pickle")
            with pytest.raises(UserError, match=r"checkpoint-6 cannot be resumed from \(.+\): remove it, and"):
                run(config(folder, output, **copy.deepcopy(DROPOUT)))
    assert not Path("pwned").exists()


def test_a_run_that_had_its_last_step_takes_no_further_one(
    folder: Path, killed: dict[str, Path], tmp_path: Path
) -> None:
    whole = killed["lora whole"] / "run"
    output = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(output / "adapter")
    (output / "summary.json").unlink()
    summary, _ = run(config(folder, output, **copy.deepcopy(DROPOUT)))
    assert summary["steps"] == json.loads((whole / "summary.json").read_text())["steps"]
    assert metrics(output) == metrics(whole)
    name = "adapter/adapter_model.safetensors"
    assert (output / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("content", ['{"finished": true}', "{}", '{"finished": true, "steps": "x"}', "[1]"])
def test_a_summary_that_no_run_has_written_counts_for_nothing(
    content: str, folder: Path, killed: dict[str, Path], tmp_path: Path
) -> None:
    output = shutil.copytree(killed["lora whole"] / "run", tmp_path / "run")
    (output / "summary.json").write_text(content)
    summary, _ = run(config(folder, output, **copy.deepcopy(DROPOUT)))
    assert is_summary(summary) and is_summary(json.loads((output / "summary.json").read_text()))


@pytest.mark.parametrize("content", [b"\xff", b"x" * 5000])
def test_a_fingerprint_that_no_run_has_written(
    content: bytes, folder: Path, killed: dict[str, Path], tmp_path: Path
) -> None:
    output = shutil.copytree(killed["lora killed"] / "run", tmp_path / "run")
    (output / "samples.sha256").write_bytes(content)
    with pytest.raises(UserError, match=r"samples\.sha256 is (not UTF-8 text|larger than 1 KiB)"):
        run(config(folder, output, **copy.deepcopy(DROPOUT)))


def test_a_checkpoint_of_more_processes(tmp_path: Path) -> None:
    write_manifest(checkpoint(tmp_path, "checkpoint-2", step=2), {"processes": 2})
    with pytest.raises(UserError, match=r"written by 2 process\(es\), and now there are 1: .* start it on 2"):
        checkpoint_to_resume(tmp_path, arguments(tmp_path), print)


def test_the_best_model_is_lost(tmp_path: Path) -> None:
    said: list[str] = []
    best = checkpoint(tmp_path, "checkpoint-3", step=3)
    newest = checkpoint(tmp_path, "checkpoint-6", step=6, best=3)
    assert checkpoint_to_resume(tmp_path, arguments(tmp_path), said.append) == newest and said == []
    flip(best / "trainer_state.json")
    assert checkpoint_to_resume(tmp_path, arguments(tmp_path), said.append) == newest
    assert "set aside as damaged-checkpoint-3" in said[0] and "the best model so far, of step 3, is lost" in said[1]


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    def left() -> list[str]:
        return sorted(path.name.removeprefix("checkpoint-") for path in (tmp_path / "checkpoints").iterdir())

    for step in (1, 2, 3, 10):
        checkpoint(tmp_path, f"checkpoint-{step}", step=step)
        os.utime(tmp_path / "checkpoints" / f"checkpoint-{step}", (100 - step, 100 - step))
    best = str(tmp_path / "elsewhere" / "checkpoint-2")
    rotate(tmp_path / "checkpoints", None, best)
    assert left() == ["1", "10", "2", "3"]
    rotate(tmp_path / "checkpoints", 3, best)
    assert left() == ["10", "2", "3"]
    rotate(tmp_path / "checkpoints", 1, best)
    assert left() == ["10", "2"]
    rotate(tmp_path / "checkpoints", 1, None)
    assert left() == ["10"]


def test_a_run_whose_folder_was_moved_keeps_its_best(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Any later save would find the best checkpoint again, so the run is killed after the last one.
    training = {"max_steps": 7, "eval_steps": 1, "learning_rate": 0.01, "warmup_steps": 0}
    loop = FinetuneTrainer.evaluation_loop

    def kill(_: FinetuneTrainer) -> None:
        raise Killed

    def worse_from_step_5_on(self: Any, *arguments: Any, **options: Any) -> Any:
        output = loop(self, *arguments, **options)
        output.metrics["eval_loss"] += max(0, self.state.global_step - 5)
        return output

    monkeypatch.setattr(FinetuneTrainer, "evaluation_loop", worse_from_step_5_on)
    whole, _ = run(config(folder, tmp_path / "whole", training=training))
    assert whole["best_step"] == 5
    with monkeypatch.context() as patch:
        patch.setattr(FinetuneTrainer, "_load_best_model", kill)
        with pytest.raises(Killed):
            run(config(folder, tmp_path / "before", training=training))
    (tmp_path / "before").rename(tmp_path / "after")
    moved, printed = run(config(folder, tmp_path / "after", training=training))
    assert "going on after step 7" in printed
    assert {**moved, **dict.fromkeys(CLOCK)} == {**whole, **dict.fromkeys(CLOCK)}
    one, other = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "after"))
    assert one.read_bytes() == other.read_bytes()


CLOCK = ("tokens_per_second", "peak_memory_bytes", "saved_in")

"""What a fine-tuned model learns from another, against the formula written by hand with torch alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from stellarbyte.errors import UserError
from stellarbyte_torch.data.samples import prepare_data
from stellarbyte_torch.finetune.distillation import DistillConfig

from ..finetuning import config, metrics, model_folder, run
from ..tiny import tiny_model
from .test_run import interrupt_at

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
# All samples in every step, in micro-batches of unequally many tokens.
EVERYTHING: dict[str, Any] = {
    **{"max_steps": 3, "per_device_train_batch_size": 10, "gradient_accumulation_steps": 4, "max_grad_norm": 0.0},
    **{"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 1e-2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def teacher(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes another model with the same tokenizer."""

    def make(**changes: Any) -> Path:
        made = tmp_path_factory.mktemp("teacher")
        torch.manual_seed(5)
        tiny_model(**{"vocab_size": 320, "max_position_embeddings": 128, "hidden_size": 48, **changes}).save_pretrained(
            made
        )
        AutoTokenizer.from_pretrained(folder).save_pretrained(made)
        return made

    return make


def test_losses_are_those_of_hintons_formula(folder: Path, teacher: Callable[..., Path], tmp_path: Path) -> None:
    weight, temperature = 0.4, 2.0
    teaching = DistillConfig(str(teacher()), weight, temperature)
    settings = config(folder, tmp_path, lora=LORA, training=EVERYTHING, distill=teaching)
    run(settings)
    found = [record["loss"] for record in metrics(tmp_path) if "loss" in record]

    data = prepare_data(settings.data, AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(42)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM", **LORA))
    other = AutoModelForCausalLM.from_pretrained(teaching.teacher)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    batch = data.collator([data.train[index] for index in range(len(data.train))])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["labels"][:, 1:].flatten()
    kept, expected = labels != -100, []
    for _ in range(3):
        ours, theirs = (each(**inputs).logits[:, :-1].flatten(0, 1)[kept] for each in (model, other))
        log_ours, log_theirs = (log_softmax(each / temperature, -1) for each in (ours, theirs.detach()))
        apart = kl_div(log_ours, log_theirs, reduction="sum", log_target=True) / kept.sum()
        loss = (1 - weight) * cross_entropy(ours, labels[kept]) + weight * temperature**2 * apart
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packing", [False, pytest.param(True, marks=pytest.mark.long)])
def test_a_student_that_is_its_teacher_learns_nothing(packing: bool, folder: Path, tmp_path: Path) -> None:
    training, data = EVERYTHING | {"max_steps": 1, "per_device_train_batch_size": 2}, {"packing": packing}
    run(config(folder, tmp_path, lora=LORA, training=training, data=data, distill=DistillConfig(str(folder), 1.0)))
    (record,) = [record for record in metrics(tmp_path) if "loss" in record]
    assert abs(record["loss"]) < 1e-5 and record["grad_norm"] < 1e-4


def test_a_run_goes_on_with_its_teacher_wherever_that_lies(
    folder: Path, teacher: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, other = teacher(), teacher(hidden_size=32)

    def settings(name: str, teaching: Path, weight: float = 0.5) -> Any:
        return config(folder, tmp_path / name, training={"max_steps": 4}, distill=DistillConfig(str(teaching), weight))

    run(settings("whole", first))
    interrupt_at(2, monkeypatch)
    run(settings("parts", first))
    monkeypatch.undo()
    with pytest.raises(UserError, match=f"learns from other weights than distill.teacher {other} has: name the run's"):
        run(settings("parts", other))
    with pytest.raises(UserError, match=r"another config: distill\.weight \(was 0\.5, now 0\.25\)"):
        run(settings("parts", first, 0.25))
    moved = first.rename(tmp_path / "moved")
    _, printed = run(settings("parts", moved))
    assert "going on after step 2" in printed
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


def test_what_no_model_can_learn_from(folder: Path, teacher: Callable[..., Path], tmp_path: Path) -> None:
    def refused(message: str, teaching: str | Path, **changes: Any) -> None:
        with pytest.raises(UserError, match=message):
            run(config(folder, tmp_path / "run", distill=DistillConfig(str(teaching)), **changes))

    refused("distill.teacher: model .*nowhere is not a folder", tmp_path / "nowhere")
    refused("has a vocabulary of 400, and the model one of 320", teacher(vocab_size=400))
    refused("has 64 positions, and data.sequence_length 96 is more", teacher(max_position_embeddings=64))
    other = teacher()
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["star"])
    tokenizer.save_pretrained(other)
    refused("has another tokenizer than the model", other)
    for training, message in (
        ({"label_smoothing_factor": 0.1}, "training.label_smoothing_factor 0.1 smooths labels, and with distill"),
        ({"fsdp": True}, "training.fsdp true shares out each model that is loaded, and distill's teacher is whole"),
    ):
        refused(message, folder, training=training)
    for values, message in (
        ({"weight": 0.0}, r"distill.weight 0.0 must be in \(0, 1\]"),
        ({"temperature": float("inf")}, "distill.temperature inf must be at least 0.01 and at most 100"),
    ):
        with pytest.raises(UserError, match=message):
            DistillConfig("teacher", **values)

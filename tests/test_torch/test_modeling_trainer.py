"""transformers' Trainer with StellarByte."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

from stellarbyte_torch import ByteForCausalLM

from .tiny import SWITCHES, tiny_model, tokens


def trainer(model: ByteForCausalLM, folder: Path, **changes: Any) -> Trainer:
    rows = [{"input_ids": row, "labels": row} for row in tokens(8, 12)]
    arguments = {
        **{"output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"},
        **{"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01},
        **changes,
    }
    return Trainer(model=model, args=TrainingArguments(**arguments), train_dataset=rows)


@pytest.mark.parametrize("switches", [{}, {**SWITCHES["shared_experts"], "output_router_logits": True}], ids=str)
def test_accumulating_is_one_batch(switches: dict[str, Any], tmp_path) -> None:
    whole, parts = (tiny_model(**switches) for _ in range(2))
    start = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    sgd = {"optim": "sgd", "max_steps": 1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trainer(whole, tmp_path, **sgd, per_device_train_batch_size=8).train()
    trainer(parts, tmp_path, **sgd, per_device_train_batch_size=4, gradient_accumulation_steps=2).train()
    moved = {name: parameter.detach() - start[name] for name, parameter in whole.named_parameters()}
    assert all(step.abs().max() > 0 for step in moved.values())
    if not switches:  # the routers' losses are means of a micro-batch, which transformers does not weigh
        for name, parameter in parts.named_parameters():
            torch.testing.assert_close(parameter.detach() - start[name], moved[name], rtol=1e-4, atol=1e-6)


def test_checkpointed_training_saves_what_loads(tmp_path) -> None:
    training = trainer(tiny_model(), tmp_path, activation_checkpointing=True, save_strategy="steps", save_steps=2)
    losses = training.train()
    assert losses.global_step == 2
    loaded = ByteForCausalLM.from_pretrained(tmp_path / "checkpoint-2")
    for name, parameter in training.model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_label_smoothing_shifts_the_labels(tmp_path) -> None:
    model = tiny_model()
    ids = tokens(2, 12)
    logits = model(ids).logits
    smoothing = trainer(model, tmp_path, label_smoothing_factor=0.1)
    expected = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1
    )
    assert smoothing.compute_loss(model, {"input_ids": ids, "labels": ids}).item() == pytest.approx(expected.item())

"""transformers' Trainer with StellarByte."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Trainer, TrainingArguments

from stellarbyte_torch import ByteForCausalLM

from .exported import export
from .tiny import POSITIONS, SWITCHES, tiny_model, tokens


def trainer(model: ByteForCausalLM, folder: Path, processing_class: Any = None, **changes: Any) -> Trainer:
    rows = [{"input_ids": row, "labels": row} for row in tokens(8, 12)]
    arguments = {
        **{"output_dir": str(folder), "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no"},
        **{"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01},
        **changes,
    }
    options: dict[str, Any] = {"args": TrainingArguments(**arguments), "train_dataset": rows}
    return Trainer(model=model, processing_class=processing_class, **options)


@pytest.mark.parametrize("switches", [{}, {**SWITCHES["shared_experts"], "output_router_logits": True}], ids=str)
def test_accumulating_is_one_batch(switches: dict[str, Any], tmp_path) -> None:
    whole, parts = (tiny_model(**switches) for _ in range(2))
    start = {name: parameter.detach().clone() for name, parameter in whole.named_parameters()}
    sgd = {"optim": "sgd", "max_steps": 1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    trainer(whole, tmp_path, **sgd, per_device_train_batch_size=8).train()
    trainer(parts, tmp_path, **sgd, per_device_train_batch_size=4, gradient_accumulation_steps=2).train()
    moved = {name: parameter.detach() - start[name] for name, parameter in whole.named_parameters()}
    assert all(step.abs().max() > 0 for step in moved.values())
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


def test_router_losses_are_shares_whatever_rows_a_micro_batch_has() -> None:
    """Rows of unequal lengths, and labels that are not all trained: eight micro-batches, or one."""
    config = {**SWITCHES["shared_experts"], "output_router_logits": True, "router_aux_loss_coef": 1.0}
    ids, mask = tokens(8, 12), torch.ones(8, 12, dtype=torch.long)
    labels = ids.clone()
    for row in range(8):
        mask[row, 12 - row :] = 0
        labels[row, 12 - row :] = labels[row, : row // 2] = -100
    model = tiny_model(**config)
    items = (labels[:, 1:] != -100).sum()
    whole = model(ids, mask, labels=labels, num_items_in_batch=items).loss
    parts = [
        model(ids[i : i + 1], mask[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=items).loss
        for i in range(8)
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize("pad", ["eos", "bos", "-100", "None", "beyond"])
def test_common_recipes_for_padding_save_what_they_trained(pad: str, tmp_path) -> None:
    folder = export(tmp_path / "model", vocab_size=300)  # no more than the tokenizer has
    tokenizer, model = AutoTokenizer.from_pretrained(folder), ByteForCausalLM.from_pretrained(folder)
    if pad == "eos":
        tokenizer.pad_token = tokenizer.eos_token
    elif pad == "bos":
        tokenizer.pad_token = tokenizer.bos_token
    elif pad == "beyond":
        tokenizer.add_special_tokens({"pad_token": "<fill>"})  # and forget resize_token_embeddings
    else:
        model.config.pad_token_id = {"-100": -100, "None": None}[pad]
    training = trainer(model, tmp_path / "run", processing_class=tokenizer, save_strategy="steps", save_steps=2)
    training.train()
    training.save_model(str(tmp_path / "saved"))
    for saved in (tmp_path / "saved", tmp_path / "run" / "checkpoint-2"):
        tensors = load_file(saved / "model.safetensors")
        assert torch.equal(tensors["model.norm.weight"], model.model.norm.weight)
    loaded = ByteForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert loaded.config.pad_token_id == tokenizer.pad_token_id


def test_what_a_running_model_becomes_is_saved(tmp_path) -> None:
    """Recipes that change a model or its config after loading; the last two are told of, and refused at loading."""
    model = tiny_model(xpos_scale_base=64.0)
    model.resize_token_embeddings(103)
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(tmp_path / "resized")
    assert ByteForCausalLM.from_pretrained(tmp_path / "resized").config.vocab_size == 103
    model.resize_token_embeddings(1)  # smaller than the special tokens
    model.save_pretrained(tmp_path / "small")
    assert ByteForCausalLM.from_pretrained(tmp_path / "small").config.vocab_size == 1
    model = tiny_model()
    model.config.max_position_embeddings = 10**5
    model.save_pretrained(tmp_path / "longer")
    assert load_file(tmp_path / "longer" / "model.safetensors")
    model = tiny_model(max_position_embeddings=1024, xpos_scale_base=128.0).half()
    model.save_pretrained(tmp_path / "half")
    assert load_file(tmp_path / "half" / "model.safetensors")


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
def test_checkpointing_gives_the_gradients_of_plain_training(position: str, reentrant: bool) -> None:
    plain, checkpointed = (tiny_model(**POSITIONS[position]).train() for _ in range(2))
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    ids = tokens(2, 12)
    for model in (plain, checkpointed):
        model(ids, labels=ids, use_cache=False).loss.backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(checkpointed.get_parameter(name).grad, parameter.grad), name

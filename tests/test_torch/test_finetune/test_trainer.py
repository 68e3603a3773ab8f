"""What FinetuneTrainer computes, against loops written by hand with PEFT and torch alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from stellarbyte_torch.data.collation import PackingCollator, PaddingCollator
from stellarbyte_torch.data.config import DataConfig
from stellarbyte_torch.data.samples import PreparedData, prepare_data
from stellarbyte_torch.finetune.batches import EpochSampler
from stellarbyte_torch.finetune.trainer import real_tokens

from ..finetuning import config, metrics, model_folder, run

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


def by_hand(model: Any, data: PreparedData, steps: int, optimizer: Any, penalty: Any = None) -> list[float]:
    """Losses of plain training on every sample at once, at a constant rate."""
    batch = data.collator([data.train[index] for index in range(len(data.train))])
    model.train()
    losses = []
    for _ in range(steps):
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        if penalty is not None:
            loss = loss + penalty(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


# All samples in every step, in micro-batches; nothing but the optimizer changes the gradients.
EVERYTHING = {
    **{"max_steps": 4, "per_device_train_batch_size": 10, "gradient_accumulation_steps": 4, "max_grad_norm": 0.0},
    **{"lr_scheduler_type": "constant", "warmup_steps": 0, "learning_rate": 1e-2},
}


def peft_model(folder: Path, config: LoraConfig) -> Any:
    torch.manual_seed(42)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)


def prepared(data: DataConfig, folder: Path) -> PreparedData:
    return prepare_data(data, AutoTokenizer.from_pretrained(folder))


def losses(output_dir: Path) -> list[float]:
    return [record["loss"] for record in metrics(output_dir) if "loss" in record]


def test_losses_are_those_of_a_loop_with_peft_and_adamw(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, tmp_path, lora=LORA, training=EVERYTHING)
    run(settings)
    model = peft_model(folder, LoraConfig(task_type="CAUSAL_LM", **LORA))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    expected = by_hand(model, prepared(settings.data, folder), 4, optimizer)
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.2


def test_regularisation_joins_the_loss_once_a_step(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, tmp_path, lora={**LORA, "l2_reg": 0.01}, training=EVERYTHING)
    run(settings)
    model = peft_model(folder, LoraConfig(task_type="CAUSAL_LM", **LORA))

    def penalty(model: Any) -> torch.Tensor:
        return 0.01 * sum(value.square().sum() for name, value in model.named_parameters() if "lora_" in name)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    expected = by_hand(model, prepared(settings.data, folder), 4, optimizer, penalty)
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)
    assert expected[0] > by_hand(model, prepared(settings.data, folder), 1, optimizer)[0]


def test_lora_plus_rates(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, tmp_path, lora={**LORA, "loraplus_lr_ratio": 8.0}, training=EVERYTHING)
    run(settings)
    model = peft_model(folder, LoraConfig(task_type="CAUSAL_LM", **LORA))
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8.0)
    expected = by_hand(model, prepared(settings.data, folder), 4, optimizer)
    assert losses(tmp_path) == pytest.approx(expected, rel=1e-5)


def test_the_validation_loss_is_a_mean_over_tokens(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, tmp_path, training={"max_steps": 1, "per_device_eval_batch_size": 3})
    run(settings)
    data = prepared(settings.data, folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for index in range(len(data.validation)):
        item = {name: torch.from_numpy(value)[None] for name, value in data.validation[index].items()}
        logits, labels = model(item["input_ids"]).logits[0, :-1], item["labels"][0, 1:]
        total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += int((labels != -100).sum())
    assert metrics(tmp_path)[0]["validation_loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_padding_is_not_counted(packing: bool, folder: Path, tmp_path: Path) -> None:
    data = {"packing": packing, "validation_fraction": 0.0}
    settings = config(folder, tmp_path, data=data, training={"max_steps": -1, "num_train_epochs": 1})
    run(settings)
    counted = sum(record["tokens"] for record in metrics(tmp_path))
    assert counted == prepared(settings.data, folder).samples.tokens


def test_a_packed_row_may_end_in_the_token_that_pads() -> None:
    rows = [{"input_ids": [5, 2, 6, 7, 2], "position_ids": [0, 1, 0, 1, 2]}, {"input_ids": [5], "position_ids": [0]}]
    items = [{name: torch.tensor(value).numpy() for name, value in row.items()} for row in rows]
    items = [{**item, "labels": item["input_ids"]} for item in items]
    for length, expected in ((5, 6), (8, 6)):
        assert real_tokens(PackingCollator(2, length)(items), 2).item() == expected
    padded = PaddingCollator(2)([{key: item[key] for key in ("input_ids", "labels")} for item in items])
    assert real_tokens(padded, 2).item() == 6


def test_batches_of_like_lengths_depend_on_seed_and_epoch_alone() -> None:
    lengths = [5 * (index % 9) + 1 for index in range(64)]
    sampler = EpochSampler(4, lengths, seed=1)
    first = list(sampler)
    assert sorted(first) == list(range(64))
    torch.manual_seed(99)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = EpochSampler(4, lengths, seed=1)
    again.set_epoch(1)
    assert list(again) == second
    assert list(EpochSampler(4, lengths, seed=2)) != first
    spreads = [
        max(group) - min(group) for at in range(0, 64, 4) if (group := [lengths[i] for i in second[at : at + 4]])
    ]
    assert sum(spreads) / len(spreads) < 15  # of 40

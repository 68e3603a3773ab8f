"""LoRA+'s learning rates, and one rate without it."""

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import apply_lora_to_model, lora_optimizer
from test_torch.tiny import tiny_model


def rates(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, float]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}


def test_a_and_b_learn_at_rates_of_their_own() -> None:
    config = LoRAConfig(
        r=2, target_modules=["q_proj", "embed_tokens"], loraplus_lr_ratio=16.0, loraplus_lr_embedding=1e-5
    )
    model = apply_lora_to_model(tiny_model(), config)
    actual = rates(lora_optimizer(model, torch.optim.AdamW, lr=1e-3, weight_decay=0.1), model)
    for name, rate in actual.items():
        assert rate == pytest.approx(1e-5 if "embedding" in name else 1.6e-2 if "lora_B" in name else 1e-3), name
    peft_own = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0, loraplus_lr_embedding=1e-5, loraplus_weight_decay=0.1
    )
    assert actual == rates(peft_own, model)


def test_without_a_ratio_everything_that_trains_has_one_rate() -> None:
    model = apply_lora_to_model(tiny_model(), LoRAConfig(r=2, target_modules=["q_proj"], train_norms=True))
    actual = rates(lora_optimizer(model, torch.optim.SGD, lr=0.5, momentum=0.9), model)
    assert set(actual.values()) == {0.5}
    assert actual.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}

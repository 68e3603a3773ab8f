"""Adapters trained here and by stock PEFT with torch.optim, from one start over the same batches: the same losses."""

import math
from collections.abc import Callable

import jax
import numpy as np
import peft
import pytest
import torch

from convert import adapters
from stellarbyte_jax.config import LoRAConfig, OptimizerConfig
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.state import TrainState, abstract_model
from stellarbyte_jax.training.step import make_train_step
from test_convert.adapting import peft_fields
from test_convert.models import sensible_params, tiny
from test_convert.torch_side import TorchModel
from tiers import short_tier

STEPS, B, T = 20, 4, 12

# Clipping bites in every step, and weight decay is felt; the learning rate warms up and falls to a tenth.
OPTIMIZER = OptimizerConfig(learning_rate=4e-2, warmup_steps=4, weight_decay=0.1, max_grad_norm=0.3)

CASES = {
    "attention": (tiny(attention_bias=True), LoRAConfig(("q_proj", "k_proj", "v_proj", "o_proj"), r=4, lora_alpha=8)),
    "shared experts": (
        tiny(num_experts=4, num_shared_experts=1, moe_intermediate_size=16),
        LoRAConfig("all-linear", r=2, lora_alpha=4, use_rslora=True, layers="1"),
    ),
}


def learning_rate(step: int) -> float:
    """Of the step counted from 1, written down once more."""
    c = OPTIMIZER
    if step < c.warmup_steps:
        return c.learning_rate * step / c.warmup_steps
    cosine = (1 + math.cos(math.pi * (step - c.warmup_steps) / (STEPS - c.warmup_steps))) / 2
    return c.learning_rate * (c.min_learning_rate_ratio + (1 - c.min_learning_rate_ratio) * cosine)


def batches(vocab_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(input_ids, labels) of each step, four times five; some labels are left out."""
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(STEPS // 4):
        ids = generator.integers(3, vocab_size, (B, T)).astype(np.int32)
        labels = np.where(generator.random((B, T)) < 0.2, -100, np.roll(ids, -1, axis=1)).astype(np.int32)
        labels[:, -1] = -100  # transformers has none for the last token
        rows.append((ids, labels))
    return rows * 4


@pytest.mark.parametrize("case", short_tier(list(CASES), 0))
def test_losses_over_twenty_steps(case: str, record_property: Callable[[str, object], None]) -> None:
    config, lora = CASES[case]
    base = sensible_params(config)
    fields = peft_fields(config, lora)
    torch.manual_seed(0)
    model = peft.get_peft_model(TorchModel(config, base).model, peft.LoraConfig(**fields | {"inference_mode": False}))
    start = {key: tensor.numpy().copy() for key, tensor in peft.get_peft_model_state_dict(model).items()}

    ours, final = train_in_jax(config, lora, base, adapters.from_peft_tensors(start, fields, config, "PEFT")[0])
    theirs, their_final = train_in_torch(model, config)
    largest = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    record_property("largest relative difference of losses", largest)
    print(f"{case}: losses {theirs[0]:.4f} to {theirs[-1]:.4f}, largest relative difference {largest:.1e}")
    assert largest < 1e-4
    assert np.mean(theirs[-3:]) < 0.9 * np.mean(theirs[:3]), "there was something to learn"

    # What the two have learnt is one adapter, too.
    named = adapters.to_peft_tensors(final, config, lora)
    assert named.keys() == their_final.keys()
    for key, tensor in named.items():
        assert np.abs(tensor - their_final[key]).max() < 1e-3 * np.abs(their_final[key]).max(), key


def train_in_jax(config, lora, base, params):
    optimizer = make_optimizer(OPTIMIZER, STEPS)
    graphdef, _ = abstract_model(config, lora=lora)
    step = jax.jit(make_train_step(graphdef, optimizer))
    state, losses = TrainState(np.int32(0), params, optimizer.init(params)), []
    for ids, labels in batches(config.vocab_size):
        state, metrics = step(state, {"input_ids": ids, "labels": labels}, base)
        assert metrics["grad_norm"] > OPTIMIZER.max_grad_norm
        routers = (config.router_aux_loss_coef, "balance_loss"), (config.router_z_loss_coef, "z_loss")
        losses.append(float(metrics["loss"] + sum(c * metrics[name] for c, name in routers if config.num_experts)))
    return losses, jax.tree.map(np.asarray, state.params)


def train_in_torch(model, config):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    betas = (OPTIMIZER.adam_beta1, OPTIMIZER.adam_beta2)
    optimizer = torch.optim.AdamW(
        trained, lr=1.0, betas=betas, eps=OPTIMIZER.adam_epsilon, weight_decay=OPTIMIZER.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: learning_rate(done + 1))
    losses = []
    for ids, labels in batches(config.vocab_size):
        shifted = np.concatenate([np.full((B, 1), -100, np.int32), labels[:, :-1]], axis=1)
        output = model(
            input_ids=torch.from_numpy(ids).long(),
            labels=torch.from_numpy(shifted).long(),
            output_router_logits=config.num_experts > 0,
            use_cache=False,
        )
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, OPTIMIZER.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(output.loss.item())
    final = peft.get_peft_model_state_dict(model)
    return losses, {key: tensor.detach().numpy() for key, tensor in final.items()}

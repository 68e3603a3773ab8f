"""Our AdamW is PyTorch's, on matrices and vectors alike; the learning rate follows the global step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from stellarbyte_jax.config import ByteConfig, OptimizerConfig
from stellarbyte_jax.training.optimizer import clip_by_global_norm, decays, learning_rate_schedule, make_optimizer
from stellarbyte_jax.training.state import abstract_model

SMALL = {"hidden_size": 16, "intermediate_size": 24, "vocab_size": 11, "num_hidden_layers": 2, "num_attention_heads": 2}


def names(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def test_decay_is_for_matrices_alone() -> None:
    params = names(decays(abstract_model(ByteConfig(**SMALL, xpos_learnable=True))[1]))
    decayed = {name for name, yes in params.items() if yes}
    assert {name.rpartition(".")[2] for name in decayed} == {"kernel", "embedding"}
    assert {name.rpartition(".")[2] for name in params.keys() - decayed} == {"scale", "zeta"}
    assert {"model.embed_tokens.embedding", "lm_head.kernel", "model.layers.mlp.up_proj.kernel"} <= decayed


def test_twenty_updates_are_those_of_torch() -> None:
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=5, max_grad_norm=3.0, weight_decay=0.3)
    max_steps = 20
    rng = np.random.default_rng(0)
    params = {"layers": {"norm": {"scale": np.ones((2, 6))}, "q": {"kernel": rng.normal(size=(2, 6, 4))}}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    optimizer = make_optimizer(config, max_steps, {"layers": {"norm": {"scale": False}, "q": {"kernel": True}}})
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)

    schedule = learning_rate_schedule(config, max_steps)
    theirs = {name: torch.nn.Parameter(torch.tensor(np.asarray(value))) for name, value in names(params).items()}
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs["layers.q.kernel"]], "weight_decay": config.weight_decay},
            {"params": [theirs["layers.norm.scale"]], "weight_decay": 0.0},
        ],
        lr=1.0,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: float(schedule(step)))

    clipped = 0
    for _ in range(max_steps):
        # Norms on both sides of the limit.
        gradients = jax.tree.map(
            lambda p: jnp.asarray(rng.normal(size=p.shape, scale=rng.choice([0.1, 1.0])), p.dtype), params
        )
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name, gradient in names(gradients).items():
            theirs[name].grad = torch.tensor(np.asarray(gradient))
        clipped += bool(torch.nn.utils.clip_grad_norm_(theirs.values(), config.max_grad_norm) > config.max_grad_norm)
        adamw.step()
        scheduler.step()
        for name, ours in names(params).items():
            np.testing.assert_allclose(ours, theirs[name].detach().numpy(), rtol=1e-6, atol=1e-6)
    assert 0 < clipped < max_steps


def test_clipping_keeps_the_direction_and_leaves_small_gradients_alone() -> None:
    clip = clip_by_global_norm(1.0)
    gradients = {"a": jnp.full((3,), 3.0), "b": jnp.full((4, 4), -1.0)}
    clipped, _ = clip.update(gradients, clip.init(gradients))
    assert float(optax.global_norm(clipped)) == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_allclose(clipped["a"] / clipped["b"][0, 0], -3 * np.ones(3), rtol=1e-6)
    for scale in (0.0, 1e-3):
        small = jax.tree.map(lambda x, scale=scale: x * scale, gradients)
        kept, _ = clip.update(small, clip.init(small))
        assert all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(jnp.all(x == y)), kept, small)))


def test_learning_rate() -> None:
    config = OptimizerConfig(learning_rate=2.0, min_learning_rate_ratio=0.1, warmup_steps=4)
    rates = np.asarray(learning_rate_schedule(config, 12)(np.arange(14)))
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])  # the first step learns, the peak comes at warmup_steps
    assert rates[7] == pytest.approx((2.0 + 0.2) / 2)  # half way between
    np.testing.assert_allclose(rates[11:], 0.2, rtol=1e-6)  # the last step, and after
    assert (np.diff(rates[3:12]) < 0).all()
    assert rates.dtype == np.float32


@pytest.mark.parametrize(("warmup", "expected"), [(0, [0.75, 0.25, 0.0]), (3, [1 / 3, 2 / 3, 1.0])])
def test_learning_rate_without_warm_up_and_with_nothing_else(warmup: int, expected: list[float]) -> None:
    config = OptimizerConfig(learning_rate=1.0, min_learning_rate_ratio=0.0, warmup_steps=warmup)
    rates = np.asarray(learning_rate_schedule(config, 3)(np.arange(3)))
    np.testing.assert_allclose(rates, expected, atol=1e-6)


def test_the_optimizer_counts_the_global_step() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, weight_decay=0.0)
    optimizer = make_optimizer(config, 4)
    params = {"kernel": jnp.zeros((2, 2))}
    state = optimizer.init(params)
    steps = []
    for _ in range(4):
        updates, state = optimizer.update({"kernel": jnp.ones((2, 2))}, state, params)
        steps.append(-float(updates["kernel"][0, 0]))  # Adam's step on a constant gradient is the learning rate
    np.testing.assert_allclose(steps, learning_rate_schedule(config, 4)(np.arange(4)), rtol=1e-5)

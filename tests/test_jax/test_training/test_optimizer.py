"""Our AdamW is PyTorch's, on matrices and vectors alike, and Lion its paper's; the rate follows the global step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from stellarbyte_jax.config import OptimizerConfig
from stellarbyte_jax.training.optimizer import clip_by_global_norm, make_optimizer
from stellarbyte_jax.training.param_traits import Trait
from stellarbyte_jax.training.schedules import learning_rate_schedule


def names(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def test_twenty_updates_are_those_of_torch() -> None:
    """With a factor on the matrix's learning rate, which acts on its decay as well."""
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=5, max_grad_norm=3.0, weight_decay=0.3)
    max_steps = 20
    rng = np.random.default_rng(0)
    params = {"layers": {"norm": {"scale": np.ones((2, 6))}, "q": {"kernel": rng.normal(size=(2, 6, 4))}}}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    traits = {"norm": {"scale": Trait(decays=False)}, "q": {"kernel": Trait(rate=0.5)}}
    optimizer = make_optimizer(config, max_steps, {"layers": traits})
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)

    schedule = learning_rate_schedule(config, max_steps, np)
    theirs = {name: torch.nn.Parameter(torch.tensor(np.asarray(value))) for name, value in names(params).items()}
    adamw = torch.optim.AdamW(
        [
            {"params": [theirs["layers.q.kernel"]], "weight_decay": config.weight_decay, "lr": 0.5},
            {"params": [theirs["layers.norm.scale"]], "weight_decay": 0.0, "lr": 1.0},
        ],
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


def test_the_optimizer_counts_the_global_step() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, weight_decay=0.0)
    optimizer = make_optimizer(config, 4)
    params = {"kernel": jnp.zeros((2, 2))}
    state = optimizer.init(params)
    steps = []
    for _ in range(4):
        updates, state = optimizer.update({"kernel": jnp.ones((2, 2))}, state, params)
        steps.append(-float(updates["kernel"][0, 0]))  # Adam's step on a constant gradient is the learning rate
    np.testing.assert_allclose(steps, learning_rate_schedule(config, 4, np)(np.arange(4)), rtol=1e-5)


def test_lion_is_its_papers() -> None:
    """Algorithm 2 of arXiv:2302.06675, written down once more."""
    config = OptimizerConfig(0.1, warmup_steps=0, lr_scheduler_type="constant", optim="lion", max_grad_norm=1e9)
    optimizer = make_optimizer(config, 6)
    rng = np.random.default_rng(0)
    params = expected = rng.normal(size=(3, 4))
    mean, state = np.zeros_like(params), optimizer.init(jnp.asarray(params, jnp.float32))
    params = jnp.asarray(params, jnp.float32)
    for _ in range(6):
        gradient = rng.normal(size=(3, 4))
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        direction = np.sign(config.adam_beta1 * mean + (1 - config.adam_beta1) * gradient)
        expected = expected - 0.1 * (direction + config.weight_decay * expected)
        mean = config.adam_beta2 * mean + (1 - config.adam_beta2) * gradient
    np.testing.assert_allclose(params, expected, rtol=1e-5)


def test_a_rate_of_nothing_leaves_a_parameter_as_it_is() -> None:
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    optimizer = make_optimizer(OptimizerConfig(0.1, warmup_steps=0), 4, {"a": Trait(rate=0.0), "b": Trait()})
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not np.any(updates["a"]) and np.all(updates["b"])


def test_what_is_off_costs_nothing() -> None:
    """The default optimizer's program is that of optax.adamw and the clipping alone."""
    config = OptimizerConfig()
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2,))}
    ours = make_optimizer(config, 9, {"a": Trait(stack=1, matrix=True), "b": Trait(decays=False)})
    schedule = learning_rate_schedule(config, 9, jnp)
    adamw = optax.adamw(schedule, 0.9, 0.95, weight_decay=0.1, mask={"a": True, "b": False})
    theirs = optax.chain(clip_by_global_norm(1.0), adamw)
    programs = [str(jax.make_jaxpr(each.update)(params, each.init(params), params)) for each in (ours, theirs)]
    assert programs[0] == programs[1]

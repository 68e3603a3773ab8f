"""Adafactor is Transformers' for each layer, and a stack of layers is neither a matrix nor one parameter."""

from typing import Any

import jax
import numpy as np
import optax
import torch
from transformers import Adafactor

from stellarbyte_jax.config import OptimizerConfig
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.param_traits import Trait

# As many layers as a matrix has rows: by its sizes, a stack of vectors looks like a matrix.
SHAPES = {"kernel": (6, 6, 4), "experts": (2, 3, 4, 6), "norm": (6, 6), "embed": (5, 4), "final": (6,)}
STACKS = {"kernel": 1, "experts": 2, "norm": 1, "embed": 0, "final": 0}


def single(tree: dict[str, Any]) -> dict[tuple[str, int], np.ndarray]:
    """Every array of every stack."""
    stacks = {name: np.asarray(array).reshape(-1, *array.shape[STACKS[name] :]) for name, array in tree.items()}
    return {(name, index): array for name, stack in stacks.items() for index, array in enumerate(stack)}


def random_tree(rng: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in SHAPES.items()}


def test_ten_updates_are_those_of_transformers() -> None:
    config = OptimizerConfig(0.05, warmup_steps=0, lr_scheduler_type="constant", optim="adafactor", max_grad_norm=1e9)
    traits = {name: Trait(stack=stack, decays=name != "norm") for name, stack in STACKS.items()}
    rng = np.random.default_rng(0)
    params: Any = random_tree(rng)
    optimizer = make_optimizer(config, 10, traits)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    kept = sum(array.size for array in jax.tree.leaves(state) if array.ndim)
    assert kept == 6 * (6 + 4) + 2 * 3 * (4 + 6) + 6 * 6 + (5 + 4) + 6

    theirs = {key: torch.nn.Parameter(torch.tensor(array)) for key, array in single(params).items()}
    groups = [[tensor for key, tensor in theirs.items() if (key[0] == "norm") == norms] for norms in (False, True)]
    adafactor = Adafactor(
        [
            {"params": groups[0], "weight_decay": config.weight_decay},
            {"params": groups[1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        scale_parameter=False,
        relative_step=False,
    )
    for step in range(10):
        # A sudden large gradient makes updates whose root mean square is clipped.
        gradients = random_tree(rng, scale=20.0 if step == 5 else 1.0)
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for key, gradient in single(gradients).items():
            theirs[key].grad = torch.tensor(gradient)
        adafactor.step()
        for key, array in single(params).items():
            np.testing.assert_allclose(array, theirs[key].detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=str(key))

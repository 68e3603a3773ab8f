"""The gated feed-forward layer against its formula, and channels that a layer lacks, which stay zero."""

import functools
from math import erf

import jax
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.checkpoints.adapter_trees import join
from stellarbyte_jax.config import LoRAConfig, OptimizerConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.feed_forward import ACTIVATIONS, FeedForward
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.param_traits import param_traits, trained_params
from stellarbyte_jax.training.state import abstract_model, init_adapters
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_params

FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_feed_forward_is_its_formula(act: str) -> None:
    config = tiny_config(hidden_act=act)
    layer = FeedForward(config, stddev=0.3, output_stddev=0.5, execution=Execution(), rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, config.hidden_size))
    gate, up, down = (
        np.asarray(projection.kernel[...], np.float64)
        for projection in (layer.gate_proj, layer.up_proj, layer.down_proj)
    )
    x64 = np.asarray(x, np.float64)
    assert relative_error(layer(x), (FORMULAS[act](x64 @ gate) * (x64 @ up)) @ down) < 1e-5


UNEVEN = tiny_config(intermediate_size=(24, 9))


def behind_their_width(params):
    """Whatever lies in channels that the second layer lacks; the first layer has all."""
    mlp = params["model"]["layers"]["mlp"]
    leaves = {
        "gate_proj": ("kernel", "lora_B"),
        "up_proj": ("kernel", "lora_B"),
        "down_proj": ("kernel", "lora_A"),
    }
    found = [mlp[name][leaf] for name, each in leaves.items() for leaf in each if leaf in mlp[name]]
    return [np.asarray(leaf)[1].T[9:] if leaf.shape[-1] == 24 else np.asarray(leaf)[1, 9:] for leaf in found]


def gradients(params, lora=None):
    ids = random_tokens(UNEVEN, 2, 9)
    graphdef, _ = abstract_model(UNEVEN, lora=lora)
    return jax.jit(jax.grad(lambda params: nnx.merge(graphdef, params)(ids).logits.std()))(params)


@pytest.mark.parametrize("adapted", [False, True], ids=["weights", "adapters"])
def test_channels_that_a_layer_lacks_start_at_zero_and_get_no_gradient(adapted: bool) -> None:
    params, lora = tiny_params(UNEVEN), None
    if adapted:
        lora = LoRAConfig("all-linear", r=3)
        fresh = jax.jit(init_adapters, static_argnums=(0, 1, 2))(UNEVEN, lora, 0)
        params = join(params, fresh)
    moved = gradients(params, lora)
    for tree in (params, moved):
        found = behind_their_width(tree)
        assert len(found) == (6 if adapted else 3)
        assert all(leaf.size and not leaf.any() for leaf in found)
    assert np.asarray(moved["model"]["layers"]["mlp"]["up_proj"]["kernel"])[1, :, :9].all()


@pytest.mark.parametrize("optim", ["adamw", "lion", "adafactor", "muon"])
def test_every_optimizer_leaves_zeros_without_gradients_zero(optim: str) -> None:
    _, abstract = abstract_model(UNEVEN)
    config = OptimizerConfig(optim=optim, learning_rate=0.1, weight_decay=0.1, warmup_steps=0)
    optimizer = make_optimizer(config, 10, param_traits(trained_params(abstract, None)))
    params, moved = tiny_params(UNEVEN), some_gradients()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(3):
        updates, state = update(moved, state, params)
        params = jax.tree.map(lambda param, change: param + change, params, updates)
    assert all(not leaf.any() for leaf in behind_their_width(params))
    assert np.isfinite(np.asarray(params["model"]["layers"]["mlp"]["down_proj"]["kernel"])).all()


@functools.cache
def some_gradients():
    return gradients(tiny_params(UNEVEN))

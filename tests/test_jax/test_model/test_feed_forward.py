"""The gated feed-forward layer against its formula, with each activation."""

from math import erf

import jax
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.feed_forward import ACTIVATIONS, FeedForward
from test_jax.tiny import relative_error, tiny_config

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

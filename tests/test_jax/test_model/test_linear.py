"""Projections: their weights in the compute dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.linear import cast
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import tiny_config


def _plain(weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return weights.astype(dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_casting_weights_is_a_plain_cast(dtype: str) -> None:
    weights = jax.random.normal(jax.random.key(0), (4096,)) * jnp.logspace(-38, 38, 4096)
    weights = jnp.append(weights, jnp.array([0.0, -0.0, jnp.inf, -jnp.inf, jnp.nan, 1.00390625, 3.4e38]))
    ours, plain = (function(weights, jnp.dtype(dtype)) for function in (cast, _plain))
    assert ours.dtype == plain.dtype
    np.testing.assert_array_equal(np.asarray(ours, np.float32), np.asarray(plain, np.float32))


def test_its_gradient_is_that_of_a_plain_cast() -> None:
    weights, cotangent = jnp.ones((64,)), jax.random.normal(jax.random.key(1), (64,), jnp.bfloat16)
    ours, plain = (
        jax.vjp(lambda w, f=f: f(w, jnp.dtype("bfloat16")), weights)[1](cotangent)[0] for f in (cast, _plain)
    )
    assert ours.dtype == jnp.float32
    np.testing.assert_array_equal(ours, plain)


def test_every_projection_of_a_layer_casts_so() -> None:
    """Other casts the TPU compiler moves before the loop over layers, and keeps all layers' weights twice."""
    graphdef, params = abstract_model(
        tiny_config(), Execution(jnp.bfloat16, platform="tpu", attention_kernel="reference")
    )
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda params, ids: nnx.merge(graphdef, params).model(ids).hidden)(params, ids)
    assert str(jaxpr).count("reduce_precision[") == 7

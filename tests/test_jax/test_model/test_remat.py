"""Remat policies: the same losses and gradients, and less kept."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.remat import POLICIES
from stellarbyte_jax.planning.jaxprs import loop_inputs
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_params

CONFIGS = {
    "dense": tiny_config(sliding_window=8),
    "moe": tiny_config(
        num_hidden_layers=1, num_experts=4, moe_intermediate_size=8, hidden_dropout=0.1, attention_dropout=0.1
    ),
}


def loss_of(name: str, remat: str, platform: str, kernel: str = "auto"):
    config = CONFIGS[name]
    graphdef, _ = abstract_model(config, Execution(platform=platform, attention_kernel=kernel, remat=remat))
    tokens = random_tokens(config, 2, 128 if kernel == "splash" else 20)

    def loss(params: Any) -> jax.Array:
        output = nnx.merge(graphdef, params).model(tokens, dropout_key=jax.random.key(1), training=True)
        return jnp.sum(output.hidden**2)

    return loss, tiny_params(config)


@pytest.mark.parametrize(
    ("name", "platform", "policies"),
    [
        pytest.param("dense", "tpu", ("full",), id="in a loop"),
        pytest.param("dense", "tpu", tuple(POLICIES), id="in a loop, all", marks=pytest.mark.long),
        pytest.param("moe", "cpu", ("full",), id="unrolled, with what is drawn"),
    ],
)
def test_policies_change_no_loss_and_no_gradient(name: str, platform: str, policies: tuple[str, ...]) -> None:
    results = {}
    for remat in ("none", *policies):
        loss, params = loss_of(name, remat, platform, kernel="reference")
        results[remat] = jax.jit(jax.value_and_grad(loss))(params)
    value, gradients = results.pop("none")
    for other, others in results.values():
        assert float(other) == pytest.approx(float(value), rel=1e-6)
        for ours, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(others), strict=True):
            assert not np.any(ours) or relative_error(theirs, ours) < 1e-5


def kept(remat: str, kernel: str) -> int:
    """Bytes that a model in a loop keeps for its backward pass, its parameters among them."""
    loss, params = loss_of("dense", remat, "tpu", kernel)
    pull_back = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pull_back))


@pytest.mark.parametrize("kernel", ["reference", "splash"])
def test_each_policy_keeps_more_than_the_one_before(kernel: str) -> None:
    sizes = [kept(remat, kernel) for remat in ("full", "save_attention", "dots_without_batch", "dots", "none")]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes)


def test_offload_keeps_the_layers_inputs_with_the_host() -> None:
    loss, params = loss_of("dense", "offload", "tpu", "reference")
    scans = [eqn for eqn in jax.make_jaxpr(jax.grad(loss))(params).eqns if eqn.primitive.name == "scan"]
    forward = next(eqn for eqn in scans if not eqn.params["reverse"])
    kept = [var.aval for var in forward.outvars[loop_inputs(forward)[1] :]]
    of_tokens = [aval for aval in kept if aval.shape[:3] == (2, 2, 20)]  # [L, B, T, …]
    assert [aval.shape for aval in of_tokens] == [(2, 2, 20, 16)]
    assert of_tokens[0].memory_space == jax.memory.Space.Host


def test_another_policy_is_refused() -> None:
    loss, params = loss_of("dense", "everything", "cpu")
    with pytest.raises(UserError, match=r"training\.remat everything is unknown: use none, full, save_attention"):
        loss(params)

"""The penalty on zeta, and what it and spikes change of a step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stellarbyte_jax.model.rope import first_zeta
from stellarbyte_jax.training.loss_spike import SpikeRule
from stellarbyte_jax.training.state import TrainState
from stellarbyte_jax.training.step import make_train_step
from stellarbyte_jax.training.zeta_loss import zeta_loss
from test_jax.test_training.test_step import CONFIG, GRAPHDEF, MICRO_BATCHES, batch, errors, gradients_of_a_step
from test_jax.tiny import tiny_params

COEF = 1e4


def with_zeta(params: Any, zeta: Any) -> Any:
    rotary = params["model"]["rotary_emb"] | {"zeta": jnp.asarray(zeta, jnp.float32)}
    return params | {"model": params["model"] | {"rotary_emb": rotary}}


def test_the_penalty_in_closed_form() -> None:
    params = tiny_params(CONFIG)
    assert params["model"]["rotary_emb"]["zeta"].tolist() == first_zeta(CONFIG.head_dim).tolist()
    penalty = jax.jit(jax.value_and_grad(functools.partial(zeta_loss, head_dim=8)))
    start = (np.arange(0, 8, 2) / 8 + 0.4) / 1.4
    value, _ = penalty(with_zeta({"model": {"rotary_emb": {}}}, start))
    assert value == pytest.approx(0, abs=1e-12)

    zeta = np.array([0.5, 0.4, 0.9, 0.7])
    value, gradient = penalty(with_zeta({"model": {"rotary_emb": {}}}, zeta))
    assert value == pytest.approx((0.1 + 0 + 0.2) / 3 + ((zeta - start) ** 2).mean())
    slope = np.array([1, -1, 1, -1]) / 3 + 2 * (zeta - start) / 4
    assert gradient["model"]["rotary_emb"]["zeta"] == pytest.approx(slope, rel=1e-5)


@functools.cache
def guarded_step() -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """With a penalty and spikes, by an optimizer whose state is the gradient that it was given."""
    optimizer = optax.trace(decay=0.0)
    spikes = SpikeRule(zscore=3.0, window=4)
    return jax.jit(make_train_step(GRAPHDEF, optimizer, MICRO_BATCHES, spikes=spikes, xpos_regularization_coef=COEF))


def state_of(params: Any, recent: list[float]) -> TrainState:
    window = jnp.asarray(recent, jnp.float32)
    return TrainState(jnp.int32(3), params, optax.trace(0.0).init(params), True, recent_losses=window)


def test_the_penalty_is_in_the_gradient_once_and_not_in_the_loss() -> None:
    plain, metrics = gradients_of_a_step(MICRO_BATCHES)
    params = tiny_params(CONFIG)
    after, told = guarded_step()(state_of(params, [np.nan] * 4), batch())
    assert max(errors(after.opt_state.trace, plain).values()) < 1e-4, "at the start it has no slope"
    assert float(told["loss"]) == pytest.approx(metrics["loss"], rel=1e-6)

    fallen = with_zeta(params, [0.8, 0.5])
    after, told = guarded_step()(state_of(fallen, [np.nan] * 4), batch())
    slope = np.array([1, -1]) + 2 * (np.array([0.8, 0.5]) - first_zeta(4)) / 2
    assert after.opt_state.trace["model"]["rotary_emb"]["zeta"] == pytest.approx(COEF * slope, rel=1e-3)
    assert float(told["loss"]) < 100


def test_a_spike_changes_nothing_and_ends_the_row_of_good_steps() -> None:
    params = tiny_params(CONFIG)
    _, metrics = gradients_of_a_step(MICRO_BATCHES)
    loss = metrics["loss"]
    state = state_of(params, [loss - 0.1, loss - 0.2, loss - 0.1, loss - 0.2])
    after, told = guarded_step()(state, batch())  # 3 standard deviations: 0.15 above the mean
    assert not told["is_spike"] and bool(after.good) and int(after.step) == 4
    expected = [*np.asarray(state.recent_losses[1:]), told["loss"]]
    assert after.recent_losses.tolist() == [float(each) for each in expected]

    state = dataclasses.replace(state, recent_losses=state.recent_losses - 0.01)
    after, told = guarded_step()(state, batch())
    assert told["is_spike"] and not after.good
    kept = dataclasses.replace(after, good=True)
    assert all(map(np.array_equal, jax.tree.leaves(kept), jax.tree.leaves(state)))
    later, told = guarded_step()(dataclasses.replace(after, recent_losses=state.recent_losses + 9), batch())
    assert not told["is_spike"] and not later.good and int(later.step) == 3, "nor is any step after it applied"

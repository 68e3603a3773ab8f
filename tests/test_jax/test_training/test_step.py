"""Law 8: micro-batches change memory alone; and a step is the update that its loss asks for."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stellarbyte_jax.config import OptimizerConfig
from stellarbyte_jax.training.loss import IGNORED_LABEL
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.state import TrainState, abstract_model
from stellarbyte_jax.training.step import batch_loss, make_eval_step, make_train_step
from test_jax.tiny import random_tokens, relative_error, segments, tiny_config, tiny_params

CONFIG = tiny_config(xpos_learnable=True)
GRAPHDEF, _ = abstract_model(CONFIG)
B, T, MICRO_BATCHES = 8, 12, 4


def batch() -> dict[str, np.ndarray]:
    """Rows of very unequal numbers of labels: with four micro-batches, row i goes to micro-batch i mod 4.

    Micro-batch 0 has all of its labels, 1 has three, 2 has one, and 3 none at all.
    """
    positions, segment_ids = segments(5, 7)
    labels = random_tokens(CONFIG, B, T, seed=1)
    for row in range(B):
        kept = {0: T, 1: 3 if row == 1 else 0, 2: 1 if row == 6 else 0, 3: 0}[row % MICRO_BATCHES]
        labels[row, kept:] = IGNORED_LABEL
    return {
        "input_ids": random_tokens(CONFIG, B, T),
        "labels": labels,
        "position_ids": np.repeat(positions, B, axis=0),
        "segment_ids": np.repeat(segment_ids, B, axis=0),
    }


def one_step(optimizer: optax.GradientTransformation, micro_batches: int) -> tuple[TrainState, dict[str, float]]:
    params = tiny_params(CONFIG)
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    state, metrics = jax.jit(make_train_step(GRAPHDEF, optimizer, micro_batches))(state, batch())
    return state, {name: float(value) for name, value in metrics.items()}


def errors(actual: Any, expected: Any) -> dict[str, float]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(relative_error, actual, expected))
    return {jax.tree_util.keystr(path): error for path, error in leaves}


@functools.cache
def gradients_of_a_step(micro_batches: int) -> tuple[Any, dict[str, float]]:
    """By an optimizer whose state is the gradient that it was given."""
    state, metrics = one_step(optax.trace(decay=0.0), micro_batches)
    return state.opt_state.trace, metrics


@pytest.mark.parametrize("micro_batches", [2, MICRO_BATCHES])
def test_law_8_micro_batches_equal_one_batch(micro_batches: int) -> None:
    whole, whole_metrics = gradients_of_a_step(1)
    parts, metrics = gradients_of_a_step(micro_batches)
    for name, error in errors(parts, whole).items():
        # A zeta's gradient is what a query's share, with n - r, and a key's, with r - m, leave: they nearly cancel.
        assert error < (1e-4 if "zeta" in name else 1e-5), name
    assert metrics == pytest.approx(whole_metrics, rel=1e-6)
    assert metrics["tokens"] == 2 * T + 3 + 1


def test_law_8_with_the_optimizer_of_a_run() -> None:
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0, adam_epsilon=1e-3), max_steps=10)
    (whole, _), (parts, _) = one_step(optimizer, 1), one_step(optimizer, MICRO_BATCHES)
    assert max(errors(parts.params, whole.params).values()) < 1e-6
    assert int(parts.step) == 1


def test_the_batch_tells_a_mean_of_means_apart() -> None:
    """Otherwise the tests above would show nothing."""
    rows, params = batch(), tiny_params(CONFIG)
    sums = [
        jax.device_get(batch_loss(GRAPHDEF, params, {name: x[i::MICRO_BATCHES] for name, x in rows.items()}))
        for i in range(MICRO_BATCHES - 1)
    ]
    of_means = np.mean([part.loss / part.tokens for part in sums])
    of_tokens = sum(part.loss for part in sums) / sum(part.tokens for part in sums)
    assert abs(of_means / of_tokens - 1) > 0.01


def test_a_step_is_the_gradient_of_the_mean_loss() -> None:
    rows, params = batch(), tiny_params(CONFIG)
    tokens = (rows["labels"] != IGNORED_LABEL).sum()
    mean_loss = jax.jit(jax.value_and_grad(lambda params: batch_loss(GRAPHDEF, params, rows).loss / tokens))
    loss, expected = mean_loss(params)
    gradients, metrics = gradients_of_a_step(1)
    assert max(errors(gradients, expected).values()) < 1e-5
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(optax.global_norm(expected)), rel=1e-5)

    # And that gradient is the loss's slope: a short way along it lowers the loss by its squared length.
    step = 1e-3 / metrics["grad_norm"]
    moved = jax.tree.map(lambda p, g, step=step: p - step * g, params, expected)
    back = jax.tree.map(lambda p, g, step=step: p + step * g, params, expected)
    slope = (float(mean_loss(back)[0]) - float(mean_loss(moved)[0])) / (2 * step)
    assert slope == pytest.approx(metrics["grad_norm"] ** 2, rel=1e-2)


def test_a_batch_without_labels_moves_nothing() -> None:
    rows = batch() | {"labels": np.full((B, T), IGNORED_LABEL, np.int32)}
    optimizer = optax.sgd(1.0)
    state = TrainState(jnp.zeros((), jnp.int32), tiny_params(CONFIG), optimizer.init(tiny_params(CONFIG)))
    after, metrics = jax.jit(make_train_step(GRAPHDEF, optimizer))(state, rows)
    assert {name: float(value) for name, value in metrics.items()} == {
        "loss": 0, "accuracy": 0, "tokens": 0, "grad_norm": 0
    }  # fmt: skip
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after.params, state.params)))


def test_an_evaluation_step_counts_the_bytes_of_its_labels() -> None:
    rows = batch()
    byte_lengths = np.random.default_rng(0).integers(0, 9, CONFIG.vocab_size).astype(np.int32)
    byte_lengths[0] = 1000  # what -100, taken for an index of 0, would add
    sums, byte_count = jax.jit(make_eval_step(GRAPHDEF))(tiny_params(CONFIG), byte_lengths, rows)
    labels = rows["labels"][rows["labels"] != IGNORED_LABEL]
    assert float(byte_count) == byte_lengths[labels].sum()
    assert float(sums.tokens) == len(labels)

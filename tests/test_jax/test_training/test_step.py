"""Law 8: micro-batches change memory alone; and a step is the update that its loss asks for."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.config import ByteConfig, OptimizerConfig
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.state import TrainState, abstract_model
from stellarbyte_jax.training.step import batch_loss, make_eval_step, make_train_step, moving_average
from test_jax.tiny import random_tokens, relative_error, segments, tiny_config, tiny_params
from tiers import short_tier

CONFIG = tiny_config(xpos_learnable=True)
GRAPHDEF, _ = abstract_model(CONFIG)
EXPERTS = tiny_config(
    num_experts=4, num_shared_experts=1, moe_intermediate_size=8, moe_capacity_factor=0.8, router_aux_loss_coef=0.5,
    router_z_loss_coef=0.1,
)  # fmt: skip
DROPPING = tiny_config(hidden_dropout=0.1, attention_dropout=0.1, residual_dropout=0.1, drop_path_rate=0.3)
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


def padded_batch() -> dict[str, np.ndarray]:
    """The same, with less and less of a row real: a mean over rows or micro-batches is not one over tokens."""
    rows = batch()
    padding_BT = np.arange(T) >= T - np.arange(B)[:, None]
    rows["segment_ids"][padding_BT] = 0
    rows["labels"][padding_BT] = IGNORED_LABEL
    return rows


sums_of = jax.jit(batch_loss, static_argnums=0)


def start(config: ByteConfig, optimizer: optax.GradientTransformation, step: int = 0) -> TrainState:
    params = tiny_params(config)
    return TrainState(jnp.asarray(step, jnp.int32), params, optimizer.init(params))


def one_step(
    optimizer: optax.GradientTransformation, micro_batches: int, config: ByteConfig = CONFIG
) -> tuple[TrainState, dict[str, Any]]:
    train_step = jax.jit(make_train_step(abstract_model(config)[0], optimizer, micro_batches))
    state, metrics = train_step(start(config, optimizer), padded_batch() if config == EXPERTS else batch())
    return state, {name: np.asarray(value).tolist() for name, value in metrics.items()}


def errors(actual: Any, expected: Any) -> dict[str, float]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(relative_error, actual, expected))
    return {jax.tree_util.keystr(path): error for path, error in leaves}


@functools.cache
def gradients_of_a_step(micro_batches: int, config: ByteConfig = CONFIG) -> tuple[Any, dict[str, Any]]:
    """By an optimizer whose state is the gradient that it was given."""
    state, metrics = one_step(optax.trace(decay=0.0), micro_batches, config)
    return state.opt_state.trace, metrics


@pytest.mark.parametrize("micro_batches", short_tier([2, MICRO_BATCHES], 1))
def test_law_8_micro_batches_equal_one_batch(micro_batches: int) -> None:
    whole, whole_metrics = gradients_of_a_step(1)
    parts, metrics = gradients_of_a_step(micro_batches)
    for name, error in errors(parts, whole).items():
        # A zeta's gradient is what a query's share, with n - r, and a key's, with r - m, leave: they nearly cancel.
        assert error < (1e-4 if "zeta" in name else 1e-5), name
    assert metrics == pytest.approx(whole_metrics, rel=1e-6)
    assert metrics["tokens"] == 2 * T + 3 + 1


@pytest.mark.long
def test_law_8_with_the_optimizer_of_a_run() -> None:
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0, adam_epsilon=1e-3), max_steps=10)
    (whole, _), (parts, _) = one_step(optimizer, 1), one_step(optimizer, MICRO_BATCHES)
    assert max(errors(parts.params, whole.params).values()) < 1e-6
    assert int(parts.step) == 1


def test_the_batch_tells_a_mean_of_means_apart() -> None:
    """Otherwise the tests above would show nothing."""
    rows, params = batch(), tiny_params(CONFIG)
    sums = [
        jax.device_get(sums_of(GRAPHDEF, params, {name: x[i::MICRO_BATCHES] for name, x in rows.items()}))
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
    state = start(CONFIG, optimizer)
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


def test_law_8_with_experts() -> None:
    whole, whole_metrics = gradients_of_a_step(1, EXPERTS)
    parts, metrics = gradients_of_a_step(2, EXPERTS)
    assert max(errors(parts, whole).values()) < 1e-5
    assert metrics.keys() == whole_metrics.keys()
    for name, value in metrics.items():
        assert value == pytest.approx(whole_metrics[name], rel=1e-5), name


def test_experts_add_their_routers_losses_to_the_gradient_and_not_to_the_loss() -> None:
    rows, params = padded_batch(), tiny_params(EXPERTS)
    graphdef, _ = abstract_model(EXPERTS)
    real_BT, labelled_BT = rows["segment_ids"] != 0, rows["labels"] != IGNORED_LABEL

    def losses(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        """With a log-softmax over all logits and a mean over tokens, row by row."""
        output = nnx.merge(graphdef, params)(
            rows["input_ids"], rows["position_ids"], rows["segment_ids"], training=True
        )
        log_probs_BTV = jax.nn.log_softmax(output.logits)
        picked_BT = jnp.take_along_axis(log_probs_BTV, jnp.maximum(rows["labels"], 0)[..., None], axis=-1)[..., 0]
        cross_entropy = -jnp.sum(picked_BT * labelled_BT) / labelled_BT.sum()
        balance, z = (
            sum(real_BT[b].sum() * leaf[layer, b] for b in range(B) for layer in range(2)) / real_BT.sum() / 2
            for leaf in (output.router.balance_B, output.router.z_B)
        )
        return cross_entropy + 0.5 * balance + 0.1 * z, (cross_entropy, output.router)

    (objective, (cross_entropy, router)), expected = jax.jit(jax.value_and_grad(losses, has_aux=True))(params)
    gradients, metrics = gradients_of_a_step(1, EXPERTS)
    assert max(errors(gradients, expected).values()) < 1e-5
    assert metrics["loss"] == pytest.approx(float(cross_entropy), rel=1e-5)
    assert metrics["objective"] == pytest.approx(float(objective), rel=1e-5) != pytest.approx(metrics["loss"], rel=1e-3)
    row_weight_B = real_BT.sum(axis=1) / real_BT.sum()
    assert metrics["expert_load"] == pytest.approx(
        np.einsum("LBE,B->E", router.load_BE, row_weight_B) / EXPERTS.num_hidden_layers, rel=1e-5
    )
    assert sum(metrics["expert_load"]) == pytest.approx(1)
    assert 0 < metrics["dropped_share"] < 1


def test_evaluation_turns_no_token_away() -> None:
    unlimited = abstract_model(dataclasses.replace(EXPERTS, moe_capacity_factor=None))[0]
    limited, params = abstract_model(EXPERTS)[0], tiny_params(EXPERTS)
    rows = padded_batch()
    assert float(sums_of(limited, params, rows).loss) == float(sums_of(unlimited, params, rows).loss)


@pytest.mark.long
def test_what_is_dropped_depends_on_seed_step_and_micro_batch_alone() -> None:
    optimizer, rows = optax.sgd(0.0), batch()

    @functools.cache
    def losses(seed: int, micro_batches: int = 1) -> list[float]:
        train_step = jax.jit(make_train_step(abstract_model(DROPPING)[0], optimizer, micro_batches, seed))
        return [float(train_step(start(DROPPING, optimizer, step), rows)[1]["loss"]) for step in (0, 1, 0)]

    first, second, again = losses(0)
    assert first == again
    assert len({first, second, *losses(1)}) == 4
    # Two micro-batches of the same rows, each row twice, would have the loss of one if they drew alike.
    twice = {name: np.repeat(x, 2, axis=0) for name, x in rows.items()}
    train_step = jax.jit(make_train_step(abstract_model(DROPPING)[0], optimizer, 2, seed=0))
    assert float(train_step(start(DROPPING, optimizer), twice)[1]["loss"]) != pytest.approx(first, rel=1e-4)


def test_evaluation_drops_nothing() -> None:
    params, rows = tiny_params(DROPPING), batch()
    same = abstract_model(tiny_config())[0]
    loss = sums_of(abstract_model(DROPPING)[0], params, rows).loss
    assert float(loss) == pytest.approx(float(sums_of(same, params, rows).loss), rel=1e-6)


def test_a_model_that_drops_nothing_draws_nothing() -> None:
    optimizer = optax.sgd(1.0)
    program = str(jax.make_jaxpr(make_train_step(GRAPHDEF, optimizer, 2, seed=1))(start(CONFIG, optimizer), batch()))
    assert "random" not in program and "threefry" not in program


def test_the_average_of_the_weights_is_optaxs_with_a_share_that_falls() -> None:
    """Over the first steps all count; then as many as the decay says."""
    generator = np.random.default_rng(0)
    average = expected = {"a": np.zeros(5, np.float32)}
    shares = []
    for step in range(1, 40):
        params = {"a": generator.normal(size=5).astype(np.float32)}
        shares.append(max(0.25, 9 / (10 + step)))
        average = moving_average(average, params, jnp.int32(step), decay=0.75)
        expected = optax.incremental_update(params, expected, shares[-1])
        assert np.allclose(average["a"], expected["a"], rtol=1e-5, atol=1e-6)
    assert shares[0] == 9 / 11 and shares[-1] == 0.25


ADAMW = make_optimizer(OptimizerConfig(warmup_steps=1, learning_rate=1e-2), 10)


@functools.cache
def with_everything() -> Any:
    """A step with an average of the weights, and with norms."""
    return jax.jit(make_train_step(GRAPHDEF, ADAMW, ema_decay=0.9, log_norms=True))


def test_the_average_of_the_weights_stops_with_the_last_good_step() -> None:
    state = dataclasses.replace(start(CONFIG, ADAMW), ema=tiny_params(CONFIG))
    after, _ = with_everything()(state, batch())
    ema = after.ema
    assert max(errors(ema, moving_average(state.ema, after.params, jnp.int32(1), 0.9)).values()) < 1e-6
    broken = dataclasses.replace(after, params=jax.tree.map(lambda x: x * np.nan, after.params))
    stopped = with_everything()(broken, batch())[0].ema
    assert all(map(np.array_equal, jax.tree.leaves(stopped), jax.tree.leaves(ema)))


def test_norms_of_groups_are_numpys() -> None:
    """What a step adds is the difference of the weights; and the groups' gradients are the whole gradient's parts."""
    state = dataclasses.replace(start(CONFIG, ADAMW), ema=tiny_params(CONFIG))
    after, metrics = with_everything()(state, batch())
    added = jax.tree.map(lambda new, old: np.asarray(new, np.float64) - old, after.params, state.params)
    model, layers = added["model"], added["model"]["layers"]
    norms = ("input_layernorm", "post_attention_layernorm")
    parts = {
        "head": added["lm_head"],
        "embeddings": model["embed_tokens"],
        "attention": layers["self_attn"],
        "feed_forward": layers["mlp"],
        "norms": (model["norm"], model["rotary_emb"], *(layers[name] for name in norms)),
    }
    expected = {f"update_norm_{n}": np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(parts[n]))) for n in parts}
    assert {name: float(metrics[name]) for name in expected} == pytest.approx(expected, rel=1e-3)
    gradients = [float(metrics[f"grad_norm_{name}"]) for name in parts]
    assert np.linalg.norm(gradients) == pytest.approx(float(metrics["grad_norm"]), rel=1e-6)
    assert len([name for name in metrics if "_norm_" in name]) == 2 * len(parts)

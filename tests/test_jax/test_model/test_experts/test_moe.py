"""Experts against a loop over tokens: who serves whom, with what weight, what is counted, and what gradients flow."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.experts.moe import RouterStats, SparseFeedForward
from stellarbyte_jax.model.feed_forward import ACTIVATIONS
from test_jax.tiny import random_tokens, relative_error, segments, tiny_config, tiny_model
from tiers import short_tier

B, T, E, F = 3, 20, 5, 8
_, SEGMENTS_T = segments(12, 3, padding=5)
# A packed row that ends in padding, one that begins with it, and one that holds nothing else.
SEGMENT_IDS = np.concatenate([SEGMENTS_T, SEGMENTS_T[:, ::-1], np.zeros_like(SEGMENTS_T)])


def moe_config(**fields: Any) -> ByteConfig:
    return tiny_config(**{"num_experts": E, "moe_intermediate_size": F, "initializer_range": 0.5} | fields)


def layer_of(config: ByteConfig, dtype: str = "float32") -> SparseFeedForward:
    return SparseFeedForward(config, stddev=0.5, output_stddev=0.5, execution=Execution(dtype), rngs=nnx.Rngs(0))


def inputs(config: ByteConfig, rows: int = B, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (rows, T, config.hidden_size))


@functools.partial(nnx.jit, static_argnums=3)
def run(
    layer: SparseFeedForward, x_BTD: jax.Array, segment_ids_BT: Any, training: bool
) -> tuple[jax.Array, RouterStats]:
    return layer(x_BTD, segment_ids_BT, training)


def arrays_of(layer: SparseFeedForward) -> dict[str, Any]:
    return jax.tree.map(lambda x: np.asarray(x, np.float64), nnx.to_pure_dict(nnx.state(layer)))


def with_router(layer: SparseFeedForward, kernel_DE: Any) -> SparseFeedForward:
    """The same layer, routed otherwise."""
    graphdef, state = nnx.split(layer)
    arrays = nnx.to_pure_dict(state)
    arrays["gate"]["kernel"] = jnp.asarray(kernel_DE, jnp.float32)
    return nnx.merge(graphdef, arrays)


def by_hand(
    config: ByteConfig, params: dict[str, Any], x_BTD: Any, segment_ids_BT: np.ndarray, training: bool
) -> tuple[np.ndarray, RouterStats]:
    """Token after token, choice after choice, in float64."""
    rows, length, _ = x_BTD.shape
    experts, k, act = config.num_experts, config.num_experts_per_tok, ACTIVATIONS[config.hidden_act]
    capacity = math.inf
    if training and config.moe_capacity_factor is not None:
        capacity = math.ceil(config.moe_capacity_factor * k * length / experts)
    y_BTD = np.zeros(x_BTD.shape)
    balance_B, z_B, load_BE, dropped_B = np.zeros(rows), np.zeros(rows), np.zeros((rows, experts)), np.zeros(rows)
    for b in range(rows):
        chosen_E, prob_E, served_E = np.zeros(experts), np.zeros(experts), np.zeros(experts)
        tokens = max(1, (segment_ids_BT[b] != 0).sum())
        for t in range(length):
            x_D = np.asarray(x_BTD[b, t], np.float64)
            logits_E = x_D @ params["gate"]["kernel"]
            total = np.exp(logits_E).sum()
            probs_E = np.exp(logits_E) / total
            choices = sorted(range(experts), key=lambda e: (-logits_E[e], e))[:k]
            scale = sum(probs_E[e] for e in choices) if config.norm_topk_prob else 1
            real = segment_ids_BT[b, t] != 0
            for e in choices:
                full = served_E[e] >= capacity
                if real:
                    chosen_E[e] += 1
                    served_E[e] += not full
                    dropped_B[b] += full
                if not full:
                    gate_F, up_F = np.split(x_D @ params["experts"]["gate_up_proj"][e], 2)
                    h_F = np.asarray(act(gate_F), np.float64) * up_F
                    y_BTD[b, t] += probs_E[e] / scale * (h_F @ params["experts"]["down_proj"][e])
            if real:
                prob_E += probs_E
                z_B[b] += np.log(total) ** 2 / tokens
            if config.num_shared_experts:
                kernels = {name: leaf["kernel"] for name, leaf in params["shared_experts"].items()}
                h_F = np.asarray(act(x_D @ kernels["gate_proj"]), np.float64) * (x_D @ kernels["up_proj"])
                y_BTD[b, t] += h_F @ kernels["down_proj"]
        balance_B[b] = experts * np.sum(chosen_E / tokens * prob_E / tokens)
        load_BE[b] = chosen_E / tokens / k
        dropped_B[b] /= tokens * k
    return y_BTD, RouterStats(balance_B, z_B, load_BE, dropped_B)


def assert_same(actual: tuple[Any, RouterStats], expected: tuple[Any, RouterStats], real_BT: np.ndarray) -> None:
    assert np.isfinite(actual[0]).all(), "padding gets an output too"
    assert relative_error(actual[0][real_BT], expected[0][real_BT]) < 1e-5
    for field in dataclasses.fields(RouterStats):
        ours, theirs = getattr(actual[1], field.name), getattr(expected[1], field.name)
        assert ours.dtype == jnp.float32
        assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6), field.name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "fields",
    short_tier(
        [
            {},
            {"norm_topk_prob": False, "hidden_act": "gelu"},
            {"num_experts_per_tok": 1},
            {"num_experts_per_tok": 3, "num_shared_experts": 2, "moe_capacity_factor": 0.7},
            {"num_experts_per_tok": E, "norm_topk_prob": False, "moe_capacity_factor": 0.3},
            {"num_experts": 1, "num_experts_per_tok": 1, "num_shared_experts": 1},
            {"moe_capacity_factor": 100.0},
        ],
        *(3, 4),
    ),
    ids=str,
)
def test_it_is_a_loop_over_tokens(fields: dict[str, Any], training: bool) -> None:
    config = moe_config(**fields)
    layer, x_BTD = layer_of(config), inputs(config)
    expected = by_hand(config, arrays_of(layer), x_BTD, SEGMENT_IDS, training)
    assert_same(run(layer, x_BTD, jnp.asarray(SEGMENT_IDS), training), expected, SEGMENT_IDS != 0)
    # Without segments everything is real.
    ones = np.ones_like(SEGMENT_IDS)
    expected = by_hand(config, arrays_of(layer), x_BTD, ones, training)
    assert_same(run(layer, x_BTD, None, training), expected, ones != 0)
    if fields.get("moe_capacity_factor", 1.0) < 1:
        assert (float(expected[1].dropped_B.max()) > 0) == training


def test_exact_ties_go_to_the_lower_index() -> None:
    """Small whole numbers: the logits are exact, and most tokens have a tie that decides who is chosen."""
    config = moe_config(num_experts_per_tok=2)
    generator = np.random.default_rng(0)
    layer = with_router(layer_of(config), generator.integers(-1, 2, (config.hidden_size, E)))
    x_BTD = jnp.asarray(generator.integers(-1, 2, (B, T, config.hidden_size)) / 4, jnp.float32)
    logits = np.sort(np.asarray(layer.gate(x_BTD)), axis=-1)[..., ::-1]
    assert (logits[..., 1] == logits[..., 2]).mean() > 0.1
    ones = np.ones((B, T), np.int32)
    expected = by_hand(config, arrays_of(layer), x_BTD, ones, training=False)
    assert_same(run(layer, x_BTD, None, False), expected, ones != 0)


def test_logits_decide_where_probabilities_are_both_zero() -> None:
    config = moe_config(num_experts=3)
    kernel_DE = np.zeros((config.hidden_size, 3))
    kernel_DE[0] = [-201, -200, 0]
    _, router = run(with_router(layer_of(config), kernel_DE), inputs(config).at[:, :, 0].set(1.0), None, True)
    assert np.array_equal(router.load_BE, np.tile([0, 0.5, 0.5], (B, 1)))


def test_an_undecided_router_has_the_smallest_losses() -> None:
    config = moe_config(num_experts=4, num_experts_per_tok=2)
    _, router = run(with_router(layer_of(config), np.zeros((config.hidden_size, 4))), inputs(config), None, True)
    assert np.allclose(router.balance_B, 2) and np.allclose(router.z_B, np.log(4) ** 2)
    assert np.array_equal(router.load_BE, np.tile([0.5, 0.5, 0, 0], (B, 1)))


def test_balance_of_a_router_that_sends_all_to_one() -> None:
    config = moe_config(num_experts=4, num_experts_per_tok=1)
    kernel_DE = np.zeros((config.hidden_size, 4))
    kernel_DE[0, 2] = np.log(3)  # probabilities 1/6, 1/6, 1/2, 1/6 where x_0 = 1
    x_BTD = inputs(config).at[:, :, 0].set(1.0)
    _, router = run(with_router(layer_of(config), kernel_DE), x_BTD, None, True)
    assert np.allclose(router.balance_B, 4 * 1 * 1 / 2)
    assert np.allclose(router.z_B, np.log(6) ** 2)
    assert np.array_equal(router.load_BE, np.tile([0, 0, 1, 0], (B, 1)))


def chooser(choices: list[list[int]], **fields: Any) -> tuple[SparseFeedForward, jax.Array]:
    """A layer, and a row in which token t chooses choices[t], the first the most: x_t is the t-th unit vector."""
    config = moe_config(num_experts=3, num_experts_per_tok=len(choices[0]), **fields)
    kernel_DE = np.zeros((config.hidden_size, 3))
    for t, experts in enumerate(choices):
        for slot, expert in enumerate(experts):
            kernel_DE[t, expert] = 2 - slot
    return with_router(layer_of(config), kernel_DE), jnp.eye(len(choices), config.hidden_size)[None]


# One place in each expert: ceil(0.5 · 2 · 3 / 3).
@pytest.mark.parametrize(
    ("segment_ids", "served", "dropped"),
    [
        ([1, 1, 1], [[True, True], [False, True], [False, False]], 3 / 6),
        ([0, 1, 1], [None, [True, True], [False, True]], 1 / 4),
        ([1, 0, 1], [[True, True], None, [True, False]], 1 / 4),
    ],
)
def test_a_full_expert_turns_later_tokens_away(segment_ids: list[int], served: list[Any], dropped: float) -> None:
    choices = [[0, 1], [1, 2], [2, 0]]
    layer, x_BTD = chooser(choices, moe_capacity_factor=0.5)
    y_BTD, router = run(layer, x_BTD, jnp.asarray([segment_ids]), True)
    assert float(router.dropped_B[0]) == pytest.approx(dropped)
    params = arrays_of(layer)
    for t, kept in enumerate(served):
        if kept is None:
            continue
        expected_D = np.zeros(x_BTD.shape[-1])
        for slot, expert in enumerate(choices[t]):
            if kept[slot]:
                gate_F, up_F = np.split(params["experts"]["gate_up_proj"][expert][t], 2)
                weight = np.exp(2 - slot) / (np.exp(2) + np.exp(1))  # not renormalised
                expected_D += weight * (
                    (gate_F / (1 + np.exp(-gate_F)) * up_F) @ params["experts"]["down_proj"][expert]
                )
        assert np.allclose(y_BTD[0, t], expected_D, atol=1e-6)
    _, router = run(layer, x_BTD, jnp.asarray([segment_ids]), False)
    assert float(router.dropped_B[0]) == 0


@pytest.mark.parametrize(
    ("factor", "places"), short_tier([(0.1, 1), (1.0, 2), (1.25, 3), (1.5, 3), (2.0, 4), (3.0, 5)], 0, 2, 5)
)
def test_capacity_is_rounded_up(factor: float, places: int) -> None:
    """Five tokens, all for expert 1: ceil(factor · 5 / 3) of them are served."""
    layer, x_BTD = chooser([[1]] * 5, moe_capacity_factor=factor)
    y_BTD, router = run(layer, x_BTD, None, True)
    assert [bool(np.any(y_BTD[0, t])) for t in range(5)] == [t < places for t in range(5)]
    assert float(router.dropped_B[0]) == pytest.approx((5 - places) / 5)


@pytest.mark.parametrize("fields", [{}, {"num_shared_experts": 1, "moe_capacity_factor": 0.5}], ids=str)
def test_law_1_a_later_token_changes_nothing_before_it(fields: dict[str, Any]) -> None:
    config = moe_config(**fields)
    layer, x_BTD, t = layer_of(config), inputs(config), 9

    @jax.jit
    def gradient(x_BTD: jax.Array) -> tuple[jax.Array, jax.Array]:
        y_BTD, pull_back = jax.vjp(lambda x_BTD: layer(x_BTD, None, True)[0], x_BTD)
        return y_BTD, pull_back(jnp.ones_like(y_BTD).at[:, t:].set(0))[0]

    y_BTD, d_BTD = gradient(x_BTD)
    assert np.all(d_BTD[:, t:] == 0) and np.all(np.any(d_BTD[:, :t] != 0, axis=-1).any(axis=1))
    # Nor by the places that it takes, which no gradient would show; and rows have places of their own.
    changed = run(layer, x_BTD.at[:, t:].set(inputs(config, seed=1)[:, t:]), None, True)[0]
    assert relative_error(changed[:, :t], y_BTD[:, :t]) < 1e-6
    changed = run(layer, x_BTD.at[0].set(inputs(config, seed=1)[0]), None, True)[0]
    assert relative_error(changed[1:], y_BTD[1:]) < 1e-6


def test_the_order_of_tokens_and_of_experts_is_of_no_matter() -> None:
    config = moe_config()
    layer, x_BTD, generator = layer_of(config), inputs(config), np.random.default_rng(0)
    y_BTD, router = run(layer, x_BTD, None, True)
    tokens = generator.permutation(T)
    moved, same = run(layer, x_BTD[:, tokens], None, True)
    assert relative_error(moved, y_BTD[:, tokens]) < 1e-6
    assert np.allclose(same.balance_B, router.balance_B, rtol=1e-6)

    order, (graphdef, state) = generator.permutation(E), nnx.split(layer)
    arrays = nnx.to_pure_dict(state)
    arrays["gate"]["kernel"] = arrays["gate"]["kernel"][:, order]
    arrays["experts"] = {name: leaf[order] for name, leaf in arrays["experts"].items()}
    same, moved_router = run(nnx.merge(graphdef, arrays), x_BTD, None, True)
    assert relative_error(same, y_BTD) < 1e-6
    assert np.allclose(moved_router.load_BE, router.load_BE[:, order], rtol=1e-6)


def densely(config: ByteConfig, params: Any, x_BTD: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, ...]:
    """Every expert over every token; gradients are autodiff's."""
    logits_BTE = jnp.einsum("BTD,DE->BTE", x_BTD, params["gate"]["kernel"])
    rank_BTE = jnp.argsort(jnp.argsort(-logits_BTE, axis=-1), axis=-1)
    chosen_BTE = rank_BTE < config.num_experts_per_tok
    probs_BTE = jax.nn.softmax(logits_BTE)
    weight_BTE = probs_BTE * chosen_BTE
    weight_BTE /= weight_BTE.sum(axis=-1, keepdims=True)
    gate_up_BTEF = jnp.einsum("BTD,EDF->BTEF", x_BTD, params["experts"]["gate_up_proj"])
    h_BTEF = jax.nn.silu(gate_up_BTEF[..., :F]) * gate_up_BTEF[..., F:]
    y_BTD = jnp.einsum("BTEF,EFD,BTE->BTD", h_BTEF, params["experts"]["down_proj"], weight_BTE)
    tokens_B = real_BT.sum(axis=1)
    share_BE = (chosen_BTE * real_BT[..., None]).sum(axis=1) / tokens_B[:, None]
    prob_BE = (probs_BTE * real_BT[..., None]).sum(axis=1) / tokens_B[:, None]
    z_B = (jax.nn.logsumexp(logits_BTE, axis=-1) ** 2 * real_BT).sum(axis=1) / tokens_B
    return y_BTD, E * (share_BE * prob_BE).sum(axis=1), z_B


def test_gradients_are_those_of_the_dense_formula() -> None:
    config = moe_config(num_experts_per_tok=3)
    layer, x_BTD = layer_of(config), inputs(config, rows=2)
    graphdef, state = nnx.split(layer)
    params, real_BT = nnx.to_pure_dict(state), jnp.asarray(SEGMENT_IDS[:2] != 0)
    d_BTD = jax.random.normal(jax.random.key(2), x_BTD.shape)

    def ours(params: Any, x_BTD: jax.Array) -> jax.Array:
        y_BTD, router = nnx.merge(graphdef, params)(x_BTD, jnp.asarray(SEGMENT_IDS[:2]), True)
        return jnp.sum(y_BTD * d_BTD) + 3 * router.balance_B.sum() + 2 * router.z_B.sum()

    def theirs(params: Any, x_BTD: jax.Array) -> jax.Array:
        y_BTD, balance_B, z_B = densely(config, params, x_BTD, real_BT)
        return jnp.sum(y_BTD * d_BTD) + 3 * balance_B.sum() + 2 * z_B.sum()

    actual, expected = (jax.jit(jax.grad(f, (0, 1)))(params, x_BTD) for f in (ours, theirs))
    assert max(jax.tree.leaves(jax.tree.map(relative_error, actual, expected))) < 1e-5


def test_a_row_of_padding_sends_no_nan_back() -> None:
    config = moe_config(moe_capacity_factor=1.0)
    layer, x_BTD = layer_of(config), inputs(config)

    def losses(x_BTD: jax.Array) -> jax.Array:
        y_BTD, router = layer(x_BTD, jnp.asarray(SEGMENT_IDS), True)
        return jnp.sum(y_BTD) + router.balance_B.sum() + router.z_B.sum()

    assert np.isfinite(jax.jit(jax.grad(losses))(x_BTD)).all()
    _, router = run(layer, x_BTD, jnp.asarray(SEGMENT_IDS), True)
    for leaf in jax.tree.leaves(router):
        assert not np.any(leaf[2])


def test_bfloat16_experts_behind_a_float32_router() -> None:
    config = moe_config(num_shared_experts=1)
    x_BTD = inputs(config).astype(jnp.bfloat16)
    y_BTD, router = run(layer_of(config, "bfloat16"), x_BTD, None, True)
    expected, expected_router = run(layer_of(config), x_BTD.astype(jnp.float32), None, True)
    assert y_BTD.dtype == jnp.bfloat16
    assert relative_error(y_BTD, expected) < 2e-2
    for actual, same in zip(jax.tree.leaves(router), jax.tree.leaves(expected_router), strict=True):
        assert actual.dtype == jnp.float32 and np.array_equal(actual, same)


def test_a_decoder_stacks_its_routers_statistics() -> None:
    config = moe_config()
    model, ids = tiny_model(config).model, random_tokens(config, B, T)
    router = jax.jit(lambda: model(ids, segment_ids=SEGMENT_IDS, training=True).router)()
    assert router.load_BE.shape == (config.num_hidden_layers, B, E)
    assert np.allclose(router.load_BE.sum(axis=-1), [[1, 1, 0]] * config.num_hidden_layers)
    assert router.balance_B.shape == (config.num_hidden_layers, B)

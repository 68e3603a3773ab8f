"""The grid of an export's plain rounding: its values, its gradient, and where a model uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.weight_grid import WeightGrid
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import random_tokens, tiny_config, tiny_params
from tiers import short_tier

MOE = tiny_config(num_experts=4, num_shared_experts=1, moe_intermediate_size=8)


def by_hand(weights: np.ndarray, bits: int, size: int) -> np.ndarray:
    """One group of one output channel after the other."""
    half, rounded = 2 ** (bits - 1), np.empty_like(weights)
    for first in range(0, len(weights), size):
        for column in range(weights.shape[1]):
            group = weights[first : first + size, column]
            scale = np.abs(group).max() / np.float32(half - 0.5)
            codes = np.clip(np.rint(group / (scale or 1)), -half, half - 1)
            rounded[first : first + size, column] = codes * scale
    return rounded


@pytest.mark.parametrize(("bits", "size"), [(4, 8), (4, None), (8, 2)])
def test_each_group_of_an_output_channel_has_its_own_grid(bits: int, size: int | None) -> None:
    weights = np.random.default_rng(0).normal(size=(3, 16, 6)).astype(np.float32)
    weights[0, :, 2] = 0
    rounded = np.asarray(jax.jit(WeightGrid(bits, size).rounded)(weights))
    expected = np.stack([by_hand(layer, bits, size or 16) for layer in weights])
    np.testing.assert_allclose(rounded, expected, rtol=1e-6)
    assert (rounded[0, :, 2] == 0).all()
    assert len(np.unique(rounded[1, : size or 16, 0])) <= 2**bits


def test_the_gradient_goes_straight_through() -> None:
    weights, cotangent = jax.random.normal(jax.random.key(0), (16, 6)), jax.random.normal(jax.random.key(1), (16, 6))
    _, pull_back = jax.vjp(WeightGrid(4, 8).rounded, weights)
    np.testing.assert_array_equal(pull_back(cotangent)[0], cotangent)


def hidden(config: ByteConfig, params: dict, grid: WeightGrid | None) -> np.ndarray:
    graphdef, _ = abstract_model(config, Execution(weight_grid=grid))
    return jax.jit(lambda params, ids: nnx.merge(graphdef, params)(ids).logits)(params, random_tokens(config, 2, 8))


@pytest.mark.parametrize("config", short_tier([tiny_config(), MOE], 0), ids=["dense", "experts"])
def test_a_model_on_a_grid_is_the_model_of_rounded_weights(config: ByteConfig) -> None:
    """All matrices of layers are rounded, but the router; embeddings and the head are not."""
    grid, params = WeightGrid(4, 4), tiny_params(config)

    def rounded(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        matrix = "_proj" in name and "bias" not in name
        return grid.rounded(leaf) if matrix else leaf

    expected = hidden(config, jax.tree_util.tree_map_with_path(rounded, params), None)
    np.testing.assert_allclose(hidden(config, params, grid), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(hidden(config, params, None) - expected).max() > 1e-2, "or this would show nothing"


def test_without_a_grid_a_model_rounds_nothing() -> None:
    def rounds(grid: WeightGrid | None) -> int:
        graphdef, params = abstract_model(MOE, Execution(weight_grid=grid))
        ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
        jaxpr = jax.make_jaxpr(lambda params, ids: nnx.merge(graphdef, params).model(ids).hidden)(params, ids)
        return str(jaxpr).count(" round[")

    assert rounds(None) == 0
    assert rounds(WeightGrid(8, None)) > 0

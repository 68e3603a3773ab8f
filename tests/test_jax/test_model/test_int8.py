"""Weights in int8: only they are rounded, products are as exact as float32, and every matrix of a layer is in int8."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.inference.speculative import SpeculativeGenerator
from stellarbyte_jax.model.causal_lm import ByteModel
from stellarbyte_jax.model.int8 import Int8Weights, Scales, int8_product
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_model
from tiers import short_tier

CONFIGS = {
    "dense": tiny_config(attention_bias=True),
    "tied, parallel": tiny_config(tie_word_embeddings=True, parallel_residual=True),
    "uneven": tiny_config(intermediate_size=(24, 13)),
    "experts": tiny_config(num_experts=4, num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=8),
}


def rounded(weights: np.ndarray) -> np.ndarray:
    """float64 [..., in, out]: each output channel in whole steps of 1/127 of its largest weight."""
    step = np.abs(weights).max(axis=-2, keepdims=True) / np.float32(127)
    return np.rint(weights / np.where(step > 0, step, 1)).astype(np.float64) * step


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param((16, 6), id="one block"),
        pytest.param((48, 2500), id="even blocks", marks=pytest.mark.long),
        pytest.param((8, 2053), id="a last block"),
    ],
)
def test_a_product_rounds_the_weights_alone(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    weights = generator.normal(size=shape).astype(np.float32)
    weights[:, 1] = 0
    x = (generator.normal(size=(5, shape[0])) * np.logspace(-20, 20, 5)[:, None]).astype(np.float32)
    x[2] = 0
    held = Int8Weights(jnp.asarray(weights))
    assert held.codes[...].dtype == jnp.int8 and held.scales[...].shape == (shape[1],)
    np.testing.assert_allclose(held.floats(), rounded(weights), rtol=1e-6)
    np.testing.assert_allclose(held.rows(jnp.array([[3, 0]]))[0], rounded(weights).T[[3, 0]], rtol=1e-6)
    found = np.asarray(jax.jit(int8_product)(x, held.codes[...], held.scales[...]))
    expected = x.astype(np.float64) @ rounded(weights)
    # float32's own 2^-24 of the sum of sizes.
    bound = np.abs(x).max(axis=1, keepdims=True) * np.abs(rounded(weights)).sum(axis=0) * 2.0**-21
    assert (np.abs(found - expected) <= bound).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_stays_none(bad: float) -> None:
    held = Int8Weights(jnp.ones((4, 3)))
    product = int8_product(jnp.array([[1.0, bad, 0.0, 2.0], [1.0, 0.0, 0.0, 2.0]]), held.codes[...], held.scales[...])
    assert not np.isfinite(product[0]).any()
    np.testing.assert_allclose(product[1], 3.0, rtol=1e-6)


@functools.cache
def logits(config: ByteConfig, how: str) -> np.ndarray:
    """Logits of twelve tokens (more pairs of token and expert than are served one by one), and of the last alone."""
    model = tiny_model(config)
    if how == "int8":
        model = model.in_int8()
    elif how == "rounded":
        model = by_hand(model)
    graphdef, state = nnx.split(model)
    ids = random_tokens(config, 1, 12)
    forward = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids).logits)
    return np.concatenate([forward(state, ids), forward(state, ids[:, -1:])], axis=1)


def by_hand(model: ByteModel) -> ByteModel:
    """The float model whose matrices hold what int8 holds."""
    graphdef, state = nnx.split(model)

    def change(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if "embed_tokens" in name:
            tied = model.config.tie_word_embeddings
            return jnp.asarray(rounded(np.asarray(leaf).T).T, jnp.float32) if tied else leaf
        matrix = ("_proj" in name or "lm_head" in name) and "bias" not in name
        return jnp.asarray(rounded(np.asarray(leaf)), jnp.float32) if matrix else leaf

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(change, nnx.to_pure_dict(state)))


@pytest.mark.parametrize("name", short_tier(list(CONFIGS), 0))
def test_a_model_in_int8_is_the_model_of_rounded_weights(name: str) -> None:
    config = CONFIGS[name]
    assert relative_error(logits(config, "int8"), logits(config, "rounded")) < 1e-5
    assert relative_error(logits(config, "int8"), logits(config, "float32")) > 1e-3, "or this would show nothing"


@pytest.mark.parametrize("name", short_tier(list(CONFIGS), 1, 3))
def test_no_matrix_is_left_out_but_embeddings_that_are_no_head_and_the_router(name: str) -> None:
    _, state = nnx.split(tiny_model(CONFIGS[name]).in_int8().unstack())
    floats = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
        if leaf.ndim >= 2 and leaf.dtype != jnp.int8 and "scales" not in jax.tree_util.keystr(path)
    }
    left = {path.rpartition("layers.")[2].lstrip("01.") for path in floats}
    embeddings = set() if CONFIGS[name].tie_word_embeddings else {"model.embed_tokens.embedding"}
    assert left == embeddings | ({"mlp.gate.kernel"} if CONFIGS[name].num_experts else set())


def test_a_bfloat16_model_has_int8_weights_too() -> None:
    config = CONFIGS["dense"]
    model = tiny_model(config, jnp.bfloat16).in_int8()
    found = jax.jit(lambda: model(random_tokens(config, 1, 12)).logits)()
    assert relative_error(found, logits(config, "rounded")[:, :12]) < 5e-2


@pytest.mark.long  # generate does so in test_cli.py
def test_generators_take_it() -> None:
    """Alone, and with the float model as its draft: greedy tokens are its own likeliest."""
    config = tiny_config(vocab_size=24, max_position_embeddings=128)
    model = tiny_model(config, seed=4)
    small, prompts = model.in_int8(), [random_tokens(config, 5).tolist(), random_tokens(config, 9).tolist()]
    answers = Generator(small).generate(prompts, 8)
    assert answers == SpeculativeGenerator(small, model).generate(prompts, 8)
    text = prompts[1] + answers[1][:-1]
    assert int(np.argmax(small(np.array([text])).logits[0, -1])) == answers[1][-1]


def test_scales_are_no_parameters() -> None:
    model = tiny_model(CONFIGS["dense"])
    before, after = (
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(m, nnx.Param))) for m in (model, model.in_int8())
    )
    assert before == after
    assert jax.tree.leaves(nnx.state(model.in_int8(), Scales))

"""XPos and RoPE against their formulas in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.architecture import XPOS_SMALLEST_ZETA, ByteConfig
from stellarbyte_jax.model.attention.kernels import attention
from stellarbyte_jax.model.rope import RotaryEmbedding, rotate
from test_jax.tiny import relative_error, tiny_config

HEAD_DIM = 16
LENGTH = 24
PAPER_ZETA = (np.arange(0, HEAD_DIM, 2) / HEAD_DIM + 0.4) / 1.4

KINDS = {
    "xpos": {"position_embedding": "xpos"},
    "xpos_learnable": {"position_embedding": "xpos", "xpos_learnable": True},
    "rope": {"position_embedding": "rope"},
}


def rotary(**fields) -> RotaryEmbedding:
    return RotaryEmbedding(tiny_config(head_dim=HEAD_DIM, **({"xpos_scale_base": 512.0} | fields)))


def vectors(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(LENGTH, HEAD_DIM)).astype(np.float32)


def scores(embedding: RotaryEmbedding, positions: np.ndarray) -> np.ndarray:
    """Scores of random queries and keys at these positions, float64 [T, S]."""
    tables = embedding(jnp.asarray(positions)[None])
    query = rotate(jnp.asarray(vectors(1)), tables.q_cos[0], tables.q_sin[0])
    key = rotate(jnp.asarray(vectors(2)), tables.k_cos[0], tables.k_sin[0])
    return np.asarray(query, np.float64) @ np.asarray(key, np.float64).T


def paper_scores(base: float, theta: float = 10000.0) -> np.ndarray:
    """XPos as the paper has it, float64 [T, S]: Re(q_n · conj(k_m) · e^(i(n - m)theta_i)) · zeta_i^((n - m) / base)."""
    half = HEAD_DIM // 2
    query, key = (vectors(seed).astype(np.float64) for seed in (1, 2))
    query, key = (x[:, :half] + 1j * x[:, half:] for x in (query, key))
    distance = np.arange(LENGTH)[:, None, None] - np.arange(LENGTH)[None, :, None]
    turn = np.exp(1j * distance * theta ** (-2 * np.arange(half) / HEAD_DIM)) * PAPER_ZETA ** (distance / base)
    return (query[:, None] * key.conj()[None] * turn).real.sum(-1)


@pytest.mark.parametrize(("base", "theta"), [(16.0, 10000.0), (512.0, 10000.0), (64.0, 500.0)])
def test_xpos_equals_the_papers_formula(base: float, theta: float) -> None:
    ours = scores(rotary(xpos_scale_base=base, rope_theta=theta), np.arange(LENGTH))
    assert relative_error(ours, paper_scores(base, theta)) < 1e-6


def test_rope_is_xpos_without_decay() -> None:
    assert relative_error(scores(rotary(**KINDS["rope"]), np.arange(LENGTH)), paper_scores(math.inf)) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [1, 10, 100, 1000, 10_000])
def test_scores_do_not_feel_a_shift_of_every_position(kind: str, shift: int) -> None:
    """Only n - m counts. What remains is float32: the angle of a pair, position · frequency, is itself rounded by up to
    2^-24 of its size, once for the query and once for the key, and so is XPos's exponent. (The frequency's own rounding
    is common to both and drops out.) So a score may move by twice that, summed over its pairs; 2^-20 is for the
    arithmetic after the angles."""
    embedding = rotary(**KINDS[kind])
    before, after = scores(embedding, np.arange(LENGTH)), scores(embedding, np.arange(LENGTH) + shift)
    frequency, exponent = embedding.inv_freq.value.astype(np.float64), -np.log(PAPER_ZETA) / 512
    rounding = 2 * 2.0**-24 * (shift + LENGTH) * (frequency + exponent) + 2.0**-20
    growth = np.exp(LENGTH * exponent)  # of the keys of the future; those of the past decay
    query, key = (np.linalg.norm(vectors(seed).astype(np.float64).reshape(LENGTH, 2, -1), axis=1) for seed in (1, 2))
    tolerance = (query * rounding * growth) @ key.T
    assert (np.abs(after - before) <= tolerance).all()
    assert tolerance.max() < 1e-2 * np.abs(before).max()


def test_the_smallest_base_that_a_config_may_have_keeps_the_factors_finite() -> None:
    context = 32768
    with pytest.raises(ValueError, match="use at least") as refused:
        ByteConfig(max_position_embeddings=context, xpos_scale_base=1.0)
    smallest = float(str(refused.value).split()[-1])
    tables = rotary(max_position_embeddings=context, xpos_scale_base=smallest)(jnp.array([[0, context - 1]]))
    query, key = (
        np.hypot(np.asarray(cos[0], np.float64), np.asarray(sin[0], np.float64))
        for cos, sin in ((tables.q_cos, tables.q_sin), (tables.k_cos, tables.k_sin))
    )
    largest = np.outer(query.max(-1), key.max(-1)).max()
    assert 1e35 < largest < np.finfo(np.float32).max


def test_learnable_zeta_starts_where_the_paper_does() -> None:
    assert np.allclose(rotary(xpos_learnable=True).zeta[...], PAPER_ZETA, rtol=1e-6)
    positions = np.arange(LENGTH)
    assert np.array_equal(scores(rotary(), positions), scores(rotary(xpos_learnable=True), positions))


def test_learnable_zeta_is_clipped_but_its_gradient_is_not() -> None:
    """Straight through: a parameter outside its bounds works as the bound, and feels there what the bound feels."""
    weight = jnp.asarray(np.random.default_rng(3).normal(size=(LENGTH, 2 * HEAD_DIM)).astype(np.float32))
    graphdef, _ = nnx.split(rotary(xpos_learnable=True, xpos_scale_base=16.0))

    @jax.jit
    @jax.value_and_grad
    def loss(zeta: jax.Array) -> jax.Array:
        tables = nnx.merge(graphdef, {"zeta": zeta})(jnp.arange(LENGTH)[None])
        return (jnp.concatenate([tables.q_cos, tables.k_sin], axis=-1)[0] * weight).sum()

    inside = jnp.asarray(PAPER_ZETA, jnp.float32).at[0].set(XPOS_SMALLEST_ZETA).at[1].set(1.0)
    outside = inside.at[0].set(0.01).at[1].set(3.0)
    (at_bound, gradient), (beyond, gradient_beyond) = loss(inside), loss(outside)
    # zeta + (bound - zeta), as the straight-through sum has it, is the bound up to its last bits.
    assert beyond == pytest.approx(float(at_bound), rel=1e-5)
    assert np.allclose(gradient_beyond, gradient, rtol=1e-4)
    assert (gradient != 0).all()

    def exact(zeta: np.ndarray) -> float:
        angles = np.arange(LENGTH)[:, None] * 10000.0 ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        exponent = (np.arange(LENGTH)[:, None] - 32) / 16.0 * np.log(zeta)
        q_cos, k_sin = np.cos(angles) * np.exp(exponent), np.sin(angles) * np.exp(-exponent)
        return float((np.concatenate([q_cos, q_cos, k_sin, k_sin], axis=-1) * np.asarray(weight, np.float64)).sum())

    zeta, step = np.asarray(inside, np.float64), 1e-6
    for pair in range(HEAD_DIM // 2):
        nudge = step * (np.arange(HEAD_DIM // 2) == pair)
        slope = (exact(zeta + nudge) - exact(zeta - nudge)) / (2 * step)
        assert float(gradient[pair]) == pytest.approx(slope, rel=1e-3, abs=1e-3), pair


def test_rotation_is_float32_in_a_bfloat16_model() -> None:
    """At position 1000 a bfloat16 angle would be off by whole turns."""
    tables = rotary(max_position_embeddings=2048)(jnp.array([[1000]]))
    assert tables.q_cos.dtype == jnp.float32
    x = jnp.asarray(vectors(1)[:1])
    rounded = rotate(x.astype(jnp.bfloat16), tables.q_cos[0], tables.q_sin[0])
    assert rounded.dtype == jnp.bfloat16
    # The input's and the output's own rounding, 2^-9 each.
    assert relative_error(rounded, rotate(x, tables.q_cos[0], tables.q_sin[0])) < 2**-8


@pytest.mark.parametrize("kernel", ["chunked", "reference"])
def test_the_smallest_base_leaves_room_for_scores(kernel: str) -> None:
    """The first query and the last key: their score is hidden, and all the same must not become inf - inf."""
    smallest = 31.0  # what ByteConfig names for 2048 positions
    embedding = rotary(max_position_embeddings=2048, xpos_scale_base=smallest)
    tables = embedding(jnp.asarray([[0, 2047]]))
    q, k = (jax.random.normal(jax.random.key(seed), (1, 1, 1, 2, HEAD_DIM)) * 4 for seed in (0, 1))
    out, gradient = jax.value_and_grad(
        lambda q: attention(
            rotate(q, tables.q_cos, tables.q_sin), rotate(k, tables.k_cos, tables.k_sin)[0], k[0], kernel=kernel
        ).sum()
    )(q)
    assert np.isfinite(out) and np.isfinite(gradient).all()

"""The chunked loss against optax's, value and gradient."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training import loss as loss_module
from stellarbyte_jax.training.logit_loss import PLAIN, Regularization
from stellarbyte_jax.training.loss import token_loss
from test_jax.tiny import relative_error
from tiers import short_tier

D, V = 8, 50


def inputs(B: int, T: int, ignored: float, seed: int, size: float = 3.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hidden [B, T, D], head [D, V] and labels [B, T], of which this part is ignored."""
    generator = np.random.default_rng(seed)
    hidden = generator.normal(size=(B, T, D)).astype(np.float32)
    head = (size * generator.normal(size=(D, V))).astype(np.float32)
    labels = generator.integers(0, V, (B, T)).astype(np.int32)
    labels[generator.random((B, T)) < ignored] = IGNORED_LABEL
    return hidden, head, labels


def optax_loss(hidden, head, labels):
    logits = jnp.einsum("BTD,DV->BTV", hidden, head, precision="highest")
    each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    return jnp.sum(jnp.where(labels == IGNORED_LABEL, 0.0, each))


@jax.jit
def with_gradients(hidden, head, labels):
    """((loss, all sums), gradients by hidden and head)."""
    return jax.value_and_grad(
        lambda *args: ((sums := token_loss(*args, labels)).loss, sums), argnums=(0, 1), has_aux=True
    )(hidden, head)


@functools.cache
def compiled(tokens_per_chunk: int, platform: str = "cpu"):  # noqa: ARG001 - a program for each, for it is in force while tracing
    """Values and gradients by hidden and head of both losses."""
    ours = jax.jit(jax.value_and_grad(lambda *args: token_loss(*args, platform=platform).loss, argnums=(0, 1)))
    theirs = jax.jit(jax.value_and_grad(optax_loss, argnums=(0, 1)))
    return ours, theirs


@settings(max_examples=settings.default.max_examples // 8, derandomize=True)
@given(
    shape=st.sampled_from([(1, 1), (1, 40), (3, 17), (5, 3)]),
    tokens_per_chunk=st.sampled_from([10, 1024]),
    platform=st.sampled_from(["cpu", "tpu"]),
    ignored=st.sampled_from([0.0, 0.3, 0.97, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_loss_and_gradients_equal_optax(
    shape: tuple[int, int], tokens_per_chunk: int, platform: str, ignored: float, seed: int
) -> None:
    hidden, head, labels = inputs(*shape, ignored, seed)
    ours, theirs = compiled(tokens_per_chunk, platform)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "TOKENS_PER_CHUNK", tokens_per_chunk)
        value, gradients = ours(hidden, head, labels)
    expected, expected_gradients = theirs(hidden, head, labels)
    assert float(value) == pytest.approx(float(expected), rel=1e-5, abs=1e-6)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert np.abs(gradient - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())


@given(
    B=st.integers(1, 64),
    T=st.integers(1, 3000),
)
def test_chunks_are_of_the_size_asked_for(B: int, T: int) -> None:
    size = loss_module._chunk_size(B, T)
    # No chunk is more than half as large again as asked for, unless a single position of all rows is.
    assert 1 <= size <= T and B * size <= max(1.5 * loss_module.TOKENS_PER_CHUNK + B, B)


@pytest.mark.parametrize(
    ("mesh", "axes", "on"),
    short_tier(
        [
            (MeshConfig(data=2, fsdp=2, tensor=2), "DV", Regularization(0.1, 0.01)),
            *(
                (mesh, axes, PLAIN)
                for axes in ("DV", "VD")
                for mesh in (
                    MeshConfig(data=2, fsdp=2, tensor=2),
                    MeshConfig(data=1, context=4, tensor=2),
                    MeshConfig(fsdp=2, context=2, expert=2),
                    MeshConfig(data=4, tensor=2, rules={"vocab": ()}),
                )
            ),
        ],
        *(0, 3, 6, 8),
    ),
)
def test_a_mesh_changes_nothing_and_gathers_no_logits(mesh: MeshConfig, axes: str, on: Regularization) -> None:
    layout = Layout.of(mesh, make_mesh(mesh))
    hidden, head, labels = inputs(8, 48, 0.2, seed=2)
    labels[0, 0] = V - 1
    head = head if axes == "DV" else head.T

    def run(layout: Layout):
        def loss(*args):
            sums = token_loss(*args, labels, axes, layout=layout, platform="tpu", regularization=on)
            return sums.objective, sums.correct

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "TOKENS_PER_CHUNK", 16)
        spread = run(layout).lower(hidden, head).compile()
        (value, correct), gradients = spread(hidden, head)
        (expected, expected_correct), expected_gradients = run(Layout())(hidden, head)
    assert float(value) == pytest.approx(float(expected), rel=1e-6) and float(correct) == float(expected_correct)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert relative_error(ours, theirs) < 1e-6
    assert gradients[0].sharding.is_equivalent_to(layout.sharding("batch", "length", None), 3)
    # Sixteen tokens a chunk, each with this device's part of the vocabulary and never more.
    assert set(re.findall(r"f32\[16,(\d{2})\]", spread.as_text())) == {str(V // layout.parts("vocab"))}


@functools.cache
def regularized(factor: float, coef: float):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "TOKENS_PER_CHUNK", 16)
        on = Regularization(factor, coef)

        def objective(*args):
            sums = token_loss(*args, regularization=on)
            return sums.objective, sums.loss

        return jax.jit(jax.value_and_grad(objective, argnums=(0, 1), has_aux=True))(*inputs(3, 17, 0.3, 4))


@pytest.mark.parametrize(("factor", "coef"), [(0.1, 0.0), (0.0, 0.01), (0.2, 0.05)])
def test_smoothing_is_torchs_and_z_loss_its_formula(factor: float, coef: float) -> None:
    (value, plain), gradients = regularized(factor, coef)
    hidden, head, labels = (torch.from_numpy(x) for x in inputs(3, 17, 0.3, 4))
    hidden.requires_grad_(), head.requires_grad_()
    logits, flat = (hidden @ head).reshape(-1, V), labels.flatten().long()
    expected = torch.nn.functional.cross_entropy(logits, flat, label_smoothing=factor, reduction="sum")
    expected = expected + coef * logits.logsumexp(-1)[flat != IGNORED_LABEL].square().sum()
    expected.backward()
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients, (hidden.grad, head.grad), strict=True):
        assert relative_error(ours, theirs.numpy()) < 1e-5
    # Perplexity comes from the loss without them.
    assert float(plain) == pytest.approx(float(optax_loss(*inputs(3, 17, 0.3, 4))), rel=1e-5)


def test_what_is_off_costs_nothing() -> None:
    """Without smoothing and z-loss there is one loss, and the program is that of the loss alone."""
    args = inputs(2, 20, 0.2, seed=0)
    off = [
        str(jax.make_jaxpr(jax.grad(lambda *args, kw=kw: token_loss(*args, **kw).objective, argnums=(0, 1)))(*args))
        for kw in ({}, {"regularization": Regularization(0.0, 0.0)})
    ]
    assert off[0] == off[1] and token_loss(*args).regularized is None


def test_the_program_does_not_grow_with_the_batch() -> None:
    def program(B: int, T: int) -> int:
        shapes = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((B, T, D), (D, V)))
        labels = jax.ShapeDtypeStruct((B, T), jnp.int32)
        gradient = jax.grad(lambda hidden, head, labels: token_loss(hidden, head, labels).loss, argnums=(0, 1))
        return len(jax.jit(gradient).lower(*shapes, labels).as_text())

    assert program(64, 8192) < 1.1 * program(16, 2048)


def test_ignored_labels_count_for_nothing() -> None:
    hidden, head, labels = inputs(2, 20, 0.5, seed=0)
    sums = jax.jit(token_loss)(hidden, head, labels)
    kept = labels != IGNORED_LABEL
    alone = jax.jit(token_loss)(hidden[kept][None], head, labels[kept][None])
    assert float(sums.tokens) == kept.sum() == float(alone.tokens)
    assert float(sums.loss) == pytest.approx(float(alone.loss), rel=1e-6)
    assert float(sums.correct) == float(alone.correct)
    d_hidden = jax.jit(jax.grad(lambda hidden: token_loss(hidden, head, labels).loss))(hidden)
    assert (d_hidden[~kept] == 0).all()
    assert (np.abs(d_hidden[kept]).max(-1) > 0).all()


def test_nothing_labelled_is_zero_and_no_nan() -> None:
    hidden, head, labels = inputs(2, 20, 1.0, seed=0)
    (value, sums), gradients = with_gradients(hidden, head, labels)
    assert float(value) == float(sums.tokens) == float(sums.correct) == 0
    assert all((gradient == 0).all() for gradient in gradients)


def test_of_equal_logits_the_first_is_the_answer() -> None:
    """As torch's and numpy's argmax have it: a model that has collapsed is not right about everything."""
    hidden, head = jnp.ones((1, 5, 4)), jnp.ones((4, 11)).at[:, 7].set(0.5)
    labels = jnp.array([[0, 1, 10, 7, IGNORED_LABEL]])
    assert float(jax.jit(token_loss)(hidden, head, labels).correct) == 1
    mesh = MeshConfig(data=4, tensor=2)  # where half of the vocabulary lies on another device
    head, labels = jnp.ones((4, 12)), jnp.tile(jnp.array([0, 11, 10, 6, IGNORED_LABEL, 0]), (4, 1))
    sums = jax.jit(functools.partial(token_loss, layout=Layout.of(mesh, make_mesh(mesh))))
    assert float(sums(jnp.ones((4, 6, 4)), head, labels).correct) == 4 * 2


def test_correct_counts_the_likeliest_tokens() -> None:
    hidden, head, labels = inputs(2, 30, 0.2, seed=5)
    likeliest = (hidden.astype(np.float64) @ head).argmax(-1)
    labels[:, ::3] = likeliest[:, ::3]
    assert float(jax.jit(token_loss)(hidden, head, labels).correct) == (likeliest == labels).sum()


def test_large_logits_stay_finite() -> None:
    hidden, head, labels = inputs(1, 10, 0.0, seed=0, size=1e4)
    (value, _), gradients = with_gradients(hidden, head, labels)
    assert np.isfinite(value) and all(np.isfinite(gradient).all() for gradient in gradients)
    assert float(value) == pytest.approx(float(optax_loss(hidden, head, labels)), rel=1e-5)


def test_bfloat16_states_give_a_float32_loss() -> None:
    hidden, head, labels = (jnp.asarray(x) for x in inputs(2, 40, 0.2, seed=1))
    hidden, head = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    (value, sums), gradients = with_gradients(hidden, head, labels)
    assert {value.dtype, sums.correct.dtype, sums.tokens.dtype} == {jnp.dtype(jnp.float32)}
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(jnp.bfloat16)}
    rounded = hidden.astype(jnp.float32), head.astype(jnp.float32)
    # Products of bfloat16 numbers are exact in float32: the value loses nothing more; gradients are rounded by 2^-9.
    expected, expected_gradients = jax.jit(jax.value_and_grad(optax_loss, argnums=(0, 1)))(*rounded, labels)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient.astype(jnp.float32), wanted) < 2**-7

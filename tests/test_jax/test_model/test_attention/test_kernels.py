"""Each attention kernel against plain attention in float64."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte_jax.model.attention.kernels import attention, attention_to_slots, cached_attention, default_kernel
from stellarbyte_jax.model.causal_lm import ByteDecoder
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.slots import Slots
from test_jax.tiny import relative_error, segments, tiny_config
from tiers import short_tier

B, H = 2, 8


def inputs(K: int, G: int, T: int, S: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q [B, K, G, T, H], k and v [B, K, S, H], and a weight for each output, float32."""
    generator = np.random.default_rng(K * 100 + T)
    shapes = ((B, K, G, T, H), (B, K, S, H), (B, K, S, H), (B, K, G, T, H))
    q, k, v, weight = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    return q, k, v, weight


def plain_attention(q, k, v, visible_BTS, weight):
    """Attention and the gradient of sum(weight · output) by q, k and v, all float64."""
    q, k, v, weight = (np.asarray(x, np.float64) for x in (q, k, v, weight))
    scores = np.einsum("BKGTH,BKSH->BKGTS", q, k)
    scores = np.where(visible_BTS[:, None, None], scores, -np.inf)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    d_probs = np.einsum("BKGTH,BKSH->BKGTS", weight, v)
    d_scores = probs * (d_probs - (probs * d_probs).sum(-1, keepdims=True))
    gradients = (
        np.einsum("BKGTS,BKSH->BKGTH", d_scores, k),
        np.einsum("BKGTS,BKGTH->BKSH", d_scores, q),
        np.einsum("BKGTS,BKGTH->BKSH", probs, weight),
    )
    return np.einsum("BKGTS,BKSH->BKGTH", probs, v), gradients


def check(attention, q, k, v, visible_BTS, weight, tolerance=1e-5) -> None:
    @jax.jit
    def run(q, k, v):
        out, pullback = jax.vjp(attention, q, k, v)
        return out, pullback(jnp.asarray(weight, out.dtype))

    out, gradients = run(q, k, v)
    assert out.dtype == q.dtype
    expected_out, expected_gradients = plain_attention(q, k, v, visible_BTS, weight)
    assert relative_error(out, expected_out) < tolerance
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        # A lone key has a weight of 1 whatever the scores: a gradient of 0, to which nothing is relative.
        assert np.abs(np.asarray(gradient) - expected).max() < tolerance * (np.abs(expected).max() or 1)


def visible_pairs(T: int, segment_ids: np.ndarray | None, window: int | None) -> np.ndarray:
    """bool [B, T, T], pair by pair as the definitions read."""
    visible = np.tril(np.ones((B, T, T), bool))
    if window is not None:
        visible &= np.arange(T)[:, None] - np.arange(T) < window
    if segment_ids is not None:
        visible &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return visible


def packed_segments(T: int) -> np.ndarray:
    """A row of two documents and a tail of padding, and a row of padding alone: int32 [B, T]."""
    first, padding = T // 3, T // 10
    return np.concatenate([segments(first, T - first - padding, padding=padding)[1], segments(padding=T)[1]])


# Chunks of 64 queries at least: 64 is one chunk, 65 a chunk and a single query, 200 three and a piece, 515 eight of 65,
# the last one short. A window shorter than a chunk of more than 64 is banded: 515 by 64, 600 by 70.
MATRIX = [
    (4, 1, 200, True, None),
    (2, 2, 200, False, None),
    (1, 4, 65, True, None),
    (2, 2, 64, True, None),
    (1, 1, 1, False, None),
    (1, 1, 2, False, None),
    (1, 2, 515, True, None),
    (2, 2, 200, False, 1),
    (2, 2, 300, False, 3),
    (1, 2, 300, True, 64),
    (2, 1, 300, True, 65),
    (1, 2, 300, True, 66),
    (2, 1, 300, True, 150),
    (1, 2, 515, True, 65),
    (2, 2, 64, True, 63),
    (2, 2, 65, True, 65),
    (2, 2, 65, False, 1000),
    (1, 1, 520, True, 1),
    (2, 1, 515, False, 3),
    (1, 2, 515, True, 64),
    (2, 2, 600, True, 70),
]


def run_case(kernel: str, K: int, G: int, T: int, packed: bool, window: int | None, dtype=np.float32, tolerance=1e-5):
    q, k, v, weight = (jnp.asarray(x, dtype) for x in inputs(K, G, T, T))
    segment_ids = packed_segments(T) if packed else None
    check(
        lambda q, k, v: attention(q, k, v, kernel=kernel, segment_ids_BT=segment_ids, window=window),
        *(q, k, v),
        visible_pairs(T, segment_ids, window),
        np.asarray(weight, np.float32),
        tolerance,
    )


@pytest.mark.parametrize("kernel", short_tier(["reference", "chunked", "cudnn"], 0, 1))
@pytest.mark.parametrize(("K", "G", "T", "packed", "window"), short_tier(MATRIX, *range(0, 21, 3)))
def test_kernels_conform(kernel: str, K: int, G: int, T: int, packed: bool, window: int | None) -> None:
    """cudnn's too: in float32, jax.nn.dot_product_attention does the same in plain XLA."""
    run_case(kernel, K, G, T, packed, window)


# Splash interpreted: tiles of 128, so few and small.
SPLASH_MATRIX = [
    (2, 2, 128, False, None),
    (1, 1, 128, True, 1),
    (1, 3, 256, True, 100),
    (1, 2, 256, False, 128),
    (2, 1, 384, True, 129),
]


@pytest.mark.parametrize(("K", "G", "T", "packed", "window"), short_tier(SPLASH_MATRIX, 1, 2, 4))
def test_splash_conforms(K: int, G: int, T: int, packed: bool, window: int | None) -> None:
    run_case("splash", K, G, T, packed, window)


# Weights, their gradient and the results are each rounded by up to 2^-9; scores and softmax are float32.
BFLOAT16_TOLERANCE = 2**-7
BFLOAT16_MATRIX = [(2, 2, 128, False, None), (1, 3, 256, True, None), (1, 2, 256, False, 30), (2, 1, 640, True, 70)]


@pytest.mark.parametrize("kernel", ["reference", "chunked", "splash"])
@pytest.mark.parametrize(("K", "G", "T", "packed", "window"), short_tier(BFLOAT16_MATRIX, 3))
def test_bfloat16_keeps_float32_scores(kernel: str, K: int, G: int, T: int, packed: bool, window: int | None) -> None:
    run_case(kernel, K, G, T, packed, window, dtype=jnp.bfloat16, tolerance=BFLOAT16_TOLERANCE)


@pytest.mark.parametrize(
    ("kernel", "T", "window"),
    short_tier(
        [(kernel, 520, window) for kernel in ("reference", "chunked", "cudnn") for window in (None, 64, 100)]
        + [("splash", 256, None), ("splash", 256, 64)],
        *(0, 4, 5, 10),
    ),
)
def test_nothing_leaks(kernel: str, T: int, window: int | None) -> None:
    """Out of sight is exactly 0 in the gradient: other documents, the future, and what lies before the window."""
    q, k, v, _ = inputs(1, 2, T, T)
    segment_ids = packed_segments(T)

    @jax.jit
    @jax.grad
    def reach(kv, t):
        out = attention(q, *kv, kernel=kernel, segment_ids_BT=segment_ids, window=window)
        return jnp.sum(jnp.take(out, t, axis=3) ** 2)

    visible = visible_pairs(T, segment_ids, window)
    padding = T - T // 10
    for t in (0, 1, 60, 64, 65, 100, T // 3 - 1, T // 3, T // 3 + 64, padding - 1, padding, T - 1):
        d_k, d_v = reach((k, v), t)
        touched = np.abs(d_k).sum((1, 3)) + np.abs(d_v).sum((1, 3)) > 0
        assert (touched == visible[:, t]).all()


@pytest.mark.parametrize("window", short_tier([16, 200], 0))
def test_a_windows_memory_and_program_grow_no_faster_than_the_sequence(window: int) -> None:
    def program(T: int):
        def shape(*sizes):
            return jax.ShapeDtypeStruct(sizes, jnp.float32)

        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, kernel="chunked", window=window) ** 2)

        traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(
            shape(1, 1, 2, T, H), shape(1, 1, T, H), shape(1, 1, T, H)
        )
        return len(traced.jaxpr.eqns), traced.lower().compile().memory_analysis().temp_size_in_bytes

    (equations, memory), (equations_of_longer, memory_of_longer) = program(2048), program(8192)
    assert equations_of_longer == equations
    assert memory_of_longer < 4.2 * memory


def dropped(kernel: str, seed: int, rate: float = 0.25, window: int | None = None):
    """With equal scores and values of 1, the sum of what was kept: [B, K, G, T]."""
    q, k, v = jnp.zeros((B, 2, 2, 520, H)), jnp.zeros((B, 2, 520, H)), jnp.ones((B, 2, 520, H))

    @jax.jit
    def run(key):
        return attention(q, k, v, kernel=kernel, window=window, dropout_rate=rate, dropout_key=key)[..., 0]

    return np.asarray(run(jax.random.key(seed)))


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
@pytest.mark.parametrize("window", short_tier([None, 64, 100], 2))
def test_dropout_drops_weights_and_keeps_the_mean(kernel: str, window: int | None) -> None:
    kept = dropped(kernel, 0, window=window)
    # The first query has one key: all or nothing, rescaled.
    assert np.isclose(kept[..., 0, None], [0, 4 / 3]).any(axis=-1).all()
    assert abs(kept.mean() - 1) < 0.02
    assert abs((kept[..., -1] * 0.75).std() - (0.75 * 0.25 / (window or 520)) ** 0.5) < 0.03
    assert (kept == dropped(kernel, 0, window=window)).all()
    assert (kept != dropped(kernel, 1, window=window)).any()


@pytest.mark.parametrize("kernel", ["reference", "chunked", "cudnn", "splash"])
def test_without_rate_or_key_nothing_is_dropped(kernel: str) -> None:
    *qkv, weight = inputs(1, 2, 128, 128)
    case = (*qkv, visible_pairs(128, None, None), weight)
    for options in ({"dropout_rate": 0.0, "dropout_key": jax.random.key(0)}, {"dropout_rate": 0.5}):
        check(lambda q, k, v, options=options: attention(q, k, v, kernel=kernel, **options), *case)


@pytest.mark.parametrize("kernel", ["reference", "chunked"])
def test_the_gradient_sees_the_same_weights_dropped(kernel: str) -> None:
    q, k, v, weight = inputs(1, 2, 70, 70)

    @jax.jit
    def loss(q, k, v):
        out = attention(q, k, v, kernel=kernel, dropout_rate=0.3, dropout_key=jax.random.key(3))
        return jnp.sum(out * weight)

    gradients, step = jax.grad(loss, argnums=(0, 1, 2))(q, k, v), 1e-2
    for index, x in enumerate((q, k, v)):
        direction = np.random.default_rng(index).normal(size=x.shape).astype(np.float32)
        up, down = ([*(q, k, v)] for _ in range(2))
        up[index], down[index] = x + step * direction, x - step * direction
        slope = (float(loss(*up)) - float(loss(*down))) / (2 * step)
        assert float(jnp.sum(gradients[index] * direction)) == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "flash"}, "attention_kernel flash is unknown: use reference, chunked, cudnn, splash or auto"),
        ({"kernel": "splash"}, "splash takes sequences of a multiple of 128 tokens, not 65"),
        ({"kernel": "splash", "dropout": True}, "attention_kernel splash has no dropout, but model.attention_dropout"),
        ({"kernel": "cudnn", "dropout": True}, "attention_kernel cudnn has no dropout, but model.attention_dropout"),
        ({"kernel": "cudnn", "dtype": jnp.bfloat16}, "cudnn needs an NVIDIA GPU for bfloat16, and JAX runs on cpu"),
    ],
)
def test_what_a_kernel_cannot_do_is_refused(options: dict, message: str) -> None:
    q, k, v, _ = (x[..., :6].astype(options.get("dtype", np.float32)) for x in inputs(1, 1, 65, 65))
    dropout = {"dropout_rate": 0.1, "dropout_key": jax.random.key(0)} if options.get("dropout") else {}
    with pytest.raises(UserError, match=message):
        attention(q, k, v, kernel=options["kernel"], **dropout)


def test_each_platform_has_its_kernel() -> None:
    kernels = {platform: default_kernel(platform) for platform in ("cpu", "gpu", "cuda", "tpu")}
    assert kernels == {"cpu": "chunked", "gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}
    assert [default_kernel(platform, 0.1) for platform in ("cpu", "gpu", "tpu")] == [
        "chunked",
        "reference",
        "reference",
    ]


@pytest.mark.parametrize("T", [1, 3, 7], ids=["few", "some", "many"])
def test_cached_attention_sees_what_it_may(T: int) -> None:
    S = 20
    q, k, v, weight = inputs(2, 3, T, S)
    visible = np.random.default_rng(0).random((B, T, S)) < 0.4
    visible[:, :, 5] = True
    check(lambda q, k, v: cached_attention(q, Slots(k), Slots(v), visible[:, None]), q, k, v, visible, weight)
    out, weights_BKGTS = attention_to_slots(q, Slots(k), Slots(v), visible[:, None])
    assert relative_error(np.einsum("BKGTS,BKSH->BKGTH", weights_BKGTS, v), out) < 1e-5
    np.testing.assert_allclose(weights_BKGTS.sum(axis=-1), 1, rtol=1e-5)


def test_what_sees_nothing_of_a_cache_is_finite_and_changes_nothing_else() -> None:
    q, k, v, _ = inputs(2, 3, 3, 20)
    visible = np.ones((B, 3, 20), bool)

    @jax.jit
    def run(visible):
        out, pullback = jax.vjp(lambda q, k, v: cached_attention(q, Slots(k), Slots(v), visible[:, None]), q, k, v)
        return out, pullback(out)

    expected, _ = run(visible)
    visible[0, 1] = False
    out, gradients = run(visible)
    assert np.isfinite(out).all() and all(np.isfinite(gradient).all() for gradient in gradients)
    assert (out == expected)[1].all() and (out == expected)[0][:, :, [0, 2]].all()


@pytest.mark.parametrize("kernel", ["reference", "chunked", "cudnn", "splash"])
def test_hidden_scores_at_the_edge_of_float32_stay_hidden(kernel: str) -> None:
    """XPos lets the scores of future keys come close to overflow: no finite bias would hide them."""
    q, k, v, _ = inputs(1, 1, 128, 128)
    q[..., 0], k[..., 0] = 1, np.where(np.arange(128) < 100, 0, 3e38)
    run = jax.jit(lambda q, k, v: attention(q, k, v, kernel=kernel)[..., :100, :])
    assert (run(q, k, v) == run(q, np.where(k == np.float32(3e38), 0, k), v)).all()


def test_scores_of_any_size_stay_finite() -> None:
    """The largest score is taken off before exp: e^1000 is no float."""
    q, k, v, _ = inputs(1, 2, 65, 65)
    for kernel in ("reference", "chunked", "cudnn"):
        run = jax.jit(functools.partial(attention, kernel=kernel))
        assert np.isfinite(run(200 * q, 200 * k, v)).all()


def test_a_decay_that_a_mask_of_cudnn_would_not_hide_is_refused() -> None:
    config = tiny_config(max_position_embeddings=2048, xpos_scale_base=119.0)

    def create(platform: str, **changes: Any) -> None:
        execution = Execution(platform=platform)
        decoder = functools.partial(ByteDecoder, dataclasses.replace(config, **changes), execution=execution)
        nnx.eval_shape(lambda: decoder(rngs=nnx.Rngs(0)))

    with pytest.raises(UserError, match=r"xpos_scale_base 119.0 decays too fast for .* cudnn .*: use at least 120"):
        create("cuda")
    for changes in ({"xpos_scale_base": 120.0}, {"position_embedding": "rope"}):
        create("cuda", **changes)
    create("cpu")

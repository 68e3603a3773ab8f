"""Each attention kernel against plain attention in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.model.attention_kernels import cached_attention, causal_attention
from test_jax.tiny import relative_error, segments

B, H = 2, 8


def inputs(K: int, G: int, T: int, S: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q [B, K, G, T, H], k and v [B, K, S, H], and a weight for each output, float32."""
    generator = np.random.default_rng(K * 100 + T)
    shapes = ((B, K, G, T, H), (B, K, S, H), (B, K, S, H), (B, K, G, T, H))
    q, k, v, weight = (generator.normal(size=shape).astype(np.float32) for shape in shapes)
    return q, k, v, weight


def plain_attention(q, k, v, visible_BTS, weight):
    """Attention and the gradient of sum(weight · output) by q, k and v, all float64."""
    q, k, v, weight = (x.astype(np.float64) for x in (q, k, v, weight))
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


def check(attention, q, k, v, visible_BTS, weight) -> None:
    @jax.jit
    def run(q, k, v):
        out, pullback = jax.vjp(attention, q, k, v)
        return out, pullback(jnp.asarray(weight))

    out, gradients = run(q, k, v)
    expected_out, expected_gradients = plain_attention(q, k, v, visible_BTS, weight)
    assert relative_error(out, expected_out) < 1e-5
    for gradient, expected in zip(gradients, expected_gradients, strict=True):
        assert relative_error(gradient, expected) < 1e-5


# On the CPU 64 is one chunk, 65 a chunk and a single query, 200 three and a piece, 515 eight of 65, the last one short.
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("K", "G", "T", "packed"),
    [(4, 1, 200, True), (2, 2, 200, False), (1, 4, 65, True), (2, 2, 64, True), (1, 1, 2, False), (1, 2, 515, True)],
)
def test_causal_attention(platform: str, K: int, G: int, T: int, packed: bool) -> None:
    """The GPU's kernel too: away from a GPU, jax.nn.dot_product_attention does the same in plain XLA."""
    q, k, v, weight = inputs(K, G, T, T)
    segment_ids = None
    visible = np.tril(np.ones((B, T, T), bool))
    if packed:
        first, second = T // 3, T - T // 3 - T // 10
        rows = [segments(first, second, padding=T // 10)[1], segments(1, T - 1)[1]]
        segment_ids = np.concatenate(rows)
        visible &= segment_ids[:, :, None] == segment_ids[:, None, :]
    check(lambda q, k, v: causal_attention(q, k, v, segment_ids, platform), q, k, v, visible, weight)


def test_cached_attention_sees_what_it_may() -> None:
    T, S = 3, 20
    q, k, v, weight = inputs(2, 3, T, S)
    visible = np.random.default_rng(0).random((B, T, S)) < 0.4
    visible[:, :, 5] = True
    check(lambda q, k, v: cached_attention(q, k, v, visible), q, k, v, visible, weight)


def test_scores_of_any_size_stay_finite() -> None:
    """The largest score is taken off before exp: e^1000 is no float."""
    q, k, v, _ = inputs(1, 2, 65, 65)
    out = jax.jit(lambda q, k, v: causal_attention(q, k, v, None, "cpu"))(200 * q, 200 * k, v)
    assert np.isfinite(out).all()


def test_bfloat16_attention_keeps_float32_scores() -> None:
    q, k, v, weight = inputs(2, 2, 130, 130)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    out = jax.jit(lambda q, k, v: causal_attention(q, k, v, None, "cpu"))(*rounded)
    assert out.dtype == jnp.bfloat16
    visible = np.tril(np.ones((B, 130, 130), bool))
    expected, _ = plain_attention(*(np.asarray(x, np.float64) for x in rounded), visible, weight)
    # bfloat16 weights and a bfloat16 output, each rounded by up to 2^-9.
    assert relative_error(out, expected) < 2**-8

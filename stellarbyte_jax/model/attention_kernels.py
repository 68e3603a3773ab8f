"""Attention itself, softmax(Q K^T) V, by the kernel that suits the backend."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

# On the CPU: chunks small enough that future keys are seldom multiplied, few enough to compile quickly.
SMALLEST_QUERY_CHUNK = 64
MOST_QUERY_CHUNKS = 8


def causal_attention(
    q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array | None, platform: str
) -> jax.Array:
    """Causal grouped-query attention of a sequence to itself; queries come scaled by 1/sqrt(H).

    With `segment_ids_BT` a token sees only its own segment. Scores and softmax are float32.

    Returns:
        [B, K, G, T, H] in q's dtype.
    """
    if platform in ("gpu", "cuda"):
        return _fused_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT)
    return _chunked_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT)


def default_kernel(platform: str, dropout_rate: float = 0.0) -> str:
    """The kernel that suits a platform, and attention dropout where there is any."""
    kernel = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "chunked")
    return "reference" if dropout_rate and kernel != "chunked" else kernel


def attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    *,
    kernel: str,
    segment_ids_BT: jax.Array | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Causal attention by the named kernel."""
    assert kernel == "chunked" and window is None and (dropout_key is None or not dropout_rate)
    return _chunked_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT)


def cached_attention(q_BKGTH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, visible_BTS: jax.Array) -> jax.Array:
    """Attention of new queries to a cache, seeing the slots where `visible_BTS` is true; float32 scores.

    Returns:
        [B, K, G, T, H] in q's dtype.
    """
    B, K, G, T, H = q_BKGTH.shape
    q = q_BKGTH.reshape(B, K, G * T, H)
    k, v = k_BKSH.astype(q.dtype), v_BKSH.astype(q.dtype)
    return _softmax_attention(q, k, v, _bias(visible_BTS, G)).reshape(q_BKGTH.shape)


def _chunked_attention(
    q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array | None
) -> jax.Array:
    """Chunks of queries against past keys only: half the scores are never computed."""
    B, K, G, T, H = q_BKGTH.shape
    chunk = max(SMALLEST_QUERY_CHUNK, -(-T // MOST_QUERY_CHUNKS))
    ends = (*range(chunk, T, chunk), T)
    sizes = [end - start for start, end in zip((0, *ends), ends, strict=False)]
    chunks = zip(
        ends, sizes, jax.lax.split(q_BKGTH, sizes, 3), _prefixes(k_BKTH, ends), _prefixes(v_BKTH, ends), strict=True
    )
    outputs = []
    for end, size, q, k, v in chunks:
        bias = _bias(_visible(end - size, end, segment_ids_BT), G)
        outputs.append(_softmax_attention(q.reshape(B, K, G * size, H), k, v, bias).reshape(B, K, G, size, H))
    return jnp.concatenate(outputs, axis=3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _prefixes(x_BKTH: jax.Array, ends: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """x[:, :, :end] for each end. The gradient adds up stretch by stretch, where slices' own would pad each to T."""
    return tuple(x_BKTH[:, :, :end] for end in ends)


def _prefixes_forward(x_BKTH: jax.Array, ends: tuple[int, ...]) -> tuple[tuple[jax.Array, ...], None]:
    return _prefixes(x_BKTH, ends), None


def _prefixes_backward(ends: tuple[int, ...], _: None, gradients: tuple[jax.Array, ...]) -> tuple[jax.Array]:
    stretches = []
    for index, (start, end) in enumerate(zip((0, *ends), ends, strict=False)):
        stretches.append(functools.reduce(jnp.add, [gradient[:, :, start:end] for gradient in gradients[index:]]))
    return (jnp.concatenate(stretches, axis=2),)


_prefixes.defvjp(_prefixes_forward, _prefixes_backward)


@jax.custom_vjp
def _softmax_attention(q_BKQH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, bias_B1QS: jax.Array) -> jax.Array:
    """softmax(q k^T + bias) v, [B, K, Q, H] in q's dtype; Q are the queries of a kv head, group by group.

    Written so that XLA's CPU compiler can fuse the softmax with its matmuls: four dimensions, the mask added rather
    than selected, and normalisation after the product with V. The bias has no gradient.
    """
    return _softmax_attention_forward(q_BKQH, k_BKSH, v_BKSH, bias_B1QS)[0]


def _softmax_attention_forward(q_BKQH, k_BKSH, v_BKSH, bias_B1QS):  # type: ignore[no-untyped-def]
    scores = jnp.einsum("BKQH,BKSH->BKQS", q_BKQH, k_BKSH, preferred_element_type=jnp.float32) + bias_B1QS
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("BKQS,BKSH->BKQH", weights.astype(v_BKSH.dtype), v_BKSH) / total
    return out.astype(q_BKQH.dtype), (q_BKQH, k_BKSH, v_BKSH, weights, total, out)


def _softmax_attention_backward(residuals, d_out):  # type: ignore[no-untyped-def]
    q, k, v, weights, total, out = residuals
    d_sum = d_out / total
    d_scores = weights * (
        jnp.einsum("BKQH,BKSH->BKQS", d_sum.astype(v.dtype), v, preferred_element_type=jnp.float32)
        - (d_sum * out).sum(axis=-1, keepdims=True)
    )
    d_scores = d_scores.astype(q.dtype)
    d_q = jnp.einsum("BKQS,BKSH->BKQH", d_scores, k)
    d_k = _contract_queries(d_scores, q)
    d_v = _contract_queries(weights.astype(v.dtype), d_sum.astype(v.dtype))
    return d_q, d_k, d_v, None


def _contract_queries(x_BKQS: jax.Array, y_BKQH: jax.Array) -> jax.Array:
    """[B, K, S, H]. Transposed beforehand, and in full: XLA's fast CPU matmuls take plain rows by columns."""
    x_BKSQ = jax.lax.optimization_barrier(x_BKQS.swapaxes(2, 3))
    return jnp.einsum("BKSQ,BKQH->BKSH", x_BKSQ, y_BKQH)


_softmax_attention.defvjp(_softmax_attention_forward, _softmax_attention_backward)


def _visible(start: int, end: int, segment_ids_BT: jax.Array | None) -> jax.Array:
    """Where queries start … end - 1 may look: bool [B or 1, end - start, end]."""
    visible_BTS = (jnp.arange(end) <= jnp.arange(start, end)[:, None])[None]
    if segment_ids_BT is not None:
        visible_BTS = visible_BTS & (segment_ids_BT[:, start:end, None] == segment_ids_BT[:, None, :end])
    return visible_BTS


def _bias(visible_BTS: jax.Array, groups: int) -> jax.Array:
    """0 where visible and -inf elsewhere, for the queries of every group: [B, 1, G·T, S]."""
    return jnp.tile(jnp.where(visible_BTS, 0.0, -jnp.inf), (1, groups, 1))[:, None]


def _fused_attention(
    q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array | None
) -> jax.Array:
    """jax.nn.dot_product_attention: cuDNN's flash attention where the dtype allows it, XLA's own for float32."""
    B, K, G, T, H = q_BKGTH.shape
    q_BTNH = q_BKGTH.reshape(B, K * G, T, H).transpose(0, 2, 1, 3)
    k_BTKH, v_BTKH = k_BKTH.transpose(0, 2, 1, 3), v_BKTH.transpose(0, 2, 1, 3)
    mask = None
    if segment_ids_BT is not None:
        mask = (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :])[:, None]
    implementation: Literal["cudnn", "xla"] = "xla" if q_BKGTH.dtype == jnp.float32 else "cudnn"
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH, k_BTKH, v_BTKH, mask=mask, is_causal=True, scale=1.0, implementation=implementation
    )
    return out_BTNH.transpose(0, 2, 1, 3).reshape(B, K, G, T, H)

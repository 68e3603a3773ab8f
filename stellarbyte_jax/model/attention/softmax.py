"""softmax(Q K^T + bias) V for one block of queries and keys; plain kernels and caches are made of it."""

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.dropout import dropout
from stellarbyte_jax.model.slots import Slots

# Up to this number of queries, `few_queries_attention` is the fastest on a CPU.
FEW_QUERIES = 4


def bias_of(visible_BKTS: jax.Array, groups: int) -> jax.Array:
    """The bias for the queries of every group, 0 where visible and -inf elsewhere: [B, K, G·T, S]; K may be 1."""
    return jnp.tile(jnp.where(visible_BKTS, 0.0, -jnp.inf), (1, 1, groups, 1))


@jax.custom_vjp
def softmax_attention(q_BKQH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, bias_B1QS: jax.Array) -> jax.Array:
    """softmax(q k^T + bias) v, [B, K, Q, H] in q's dtype; Q counts the queries of a kv head, group by group.

    It is written so that XLA's CPU compiler can fuse the softmax with its matmuls: it has four dimensions, adds the
    mask instead of selecting by it, and normalises after the product with V. The bias has no gradient.
    """
    return _forward(q_BKQH, k_BKSH, v_BKSH, bias_B1QS)[0]


def _forward(q_BKQH, k_BKSH, v_BKSH, bias_B1QS):  # type: ignore[no-untyped-def]
    scores = jnp.einsum("BKQH,BKSH->BKQS", q_BKQH, k_BKSH, preferred_element_type=jnp.float32) + bias_B1QS
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("BKQS,BKSH->BKQH", weights.astype(v_BKSH.dtype), v_BKSH) / total
    return out.astype(q_BKQH.dtype), (q_BKQH, k_BKSH, v_BKSH, weights, total, out)


def attention_and_weights(
    q_BKQH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, bias_B1QS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`softmax_attention` and its weights, float32 [B, K, Q, S]."""
    out, (*_, weights, total, _) = _forward(q_BKQH, k_BKSH, v_BKSH, bias_B1QS)
    return out, weights / total


def _backward(residuals, d_out):  # type: ignore[no-untyped-def]
    q, k, v, weights, total, out = residuals
    # Both terms of the difference use the same rounded value: where they nearly cancel, so do their errors.
    d_sum = (d_out / total).astype(v.dtype)
    d_scores = weights * (
        jnp.einsum("BKQH,BKSH->BKQS", d_sum, v, preferred_element_type=jnp.float32)
        - (d_sum * out).sum(axis=-1, keepdims=True)
    )
    d_scores = d_scores.astype(q.dtype)
    d_q = jnp.einsum("BKQS,BKSH->BKQH", d_scores, k)
    d_k = _contract_queries(d_scores, q)
    d_v = _contract_queries(weights.astype(v.dtype), d_sum)
    return d_q, d_k, d_v, None


def _contract_queries(x_BKQS: jax.Array, y_BKQH: jax.Array) -> jax.Array:
    """x^T y over the queries, [B, K, S, H]. x is transposed first, as XLA's fast CPU matmuls take plain operands."""
    x_BKSQ = jax.lax.optimization_barrier(x_BKQS.swapaxes(2, 3))
    return jnp.einsum("BKSQ,BKQH->BKSH", x_BKSQ, y_BKQH)


softmax_attention.defvjp(_forward, _backward)


def dropped_softmax_attention(
    q_BKQH: jax.Array, k_BKSH: jax.Array, v_BKSH: jax.Array, bias_B1QS: jax.Array, rate: float, key: jax.Array | None
) -> jax.Array:
    """The same by the plain formula, with dropout of the weights if there is a key; the gradient is JAX's own."""
    scores = jnp.einsum("BKQH,BKSH->BKQS", q_BKQH, k_BKSH, preferred_element_type=jnp.float32) + bias_B1QS
    weights = dropout(jax.nn.softmax(scores, axis=-1), rate, key)
    return jnp.einsum("BKQS,BKSH->BKQH", weights.astype(v_BKSH.dtype), v_BKSH).astype(q_BKQH.dtype)


def few_queries_attention(
    q_BKQH: jax.Array, keys: Slots, values: Slots, bias_B1QS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`attention_and_weights` for decoding, where reading keys and values takes the time."""
    scores_BKQS = keys.scores(q_BKQH) + bias_B1QS
    weights = jnp.exp(scores_BKQS - scores_BKQS.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    out = values.sums(weights, q_BKQH.dtype)
    return (out / total).astype(q_BKQH.dtype), weights / total

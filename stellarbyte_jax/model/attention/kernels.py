"""The one door to attention, softmax(Q K^T) V: the kernel that suits the backend, or the one that is asked for."""

import jax
from jax.ad_checkpoint import checkpoint_name

from stellarbyte.errors import UserError
from stellarbyte_jax.model.attention.chunked import chunked_attention, visible
from stellarbyte_jax.model.attention.cudnn import cudnn_attention
from stellarbyte_jax.model.attention.softmax import (
    FEW_QUERIES,
    attention_and_weights,
    bias_of,
    dropped_softmax_attention,
    few_queries_attention,
)
from stellarbyte_jax.model.attention.splash import splash_attention
from stellarbyte_jax.model.remat import ATTENTION
from stellarbyte_jax.model.slots import Slots
from stellarbyte_jax.sharding import ONE_DEVICE, Layout

KERNELS = ("reference", "chunked", "cudnn", "splash")


def default_kernel(platform: str, dropout_rate: float = 0.0) -> str:
    """The kernel that suits a platform; with attention dropout, one that supports it."""
    kernel = {"gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}.get(platform, "chunked")
    return "reference" if dropout_rate and kernel in ("cudnn", "splash") else kernel


def attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    *,
    kernel: str,
    block_size: int = 512,
    segment_ids_BT: jax.Array | None = None,
    window: int | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    platform: str | None = None,
    layout: Layout = ONE_DEVICE,
) -> jax.Array:
    """Causal grouped-query attention of a sequence to itself; scores and softmax are float32 in every kernel.

    Args:
        q_BKGTH: the queries, scaled by 1/sqrt(H).
        k_BKTH: the keys.
        v_BKTH: the values.
        kernel: reference (plain, T × T scores), chunked (for CPUs), cudnn (for GPUs) or splash (for TPUs).
        block_size: the most queries and keys that splash works on at a time, see splash.py.
        segment_ids_BT: the segments; a token sees only its own. By default a row is one segment.
        window: the number of tokens that a token sees, itself included; by default it sees all before it.
        dropout_rate: the rate of dropout of the softmax weights, if there is a key.
        dropout_key: the key that dropout draws from; None drops nothing.
        platform: the platform to compile for, by default JAX's; splash is interpreted on all but TPUs.
        layout: the placement of the arrays on a mesh; cudnn and splash run on each device's own rows and kv heads.

    Returns:
        [B, K, G, T, H] in q's dtype.

    Raises:
        UserError: there is no such kernel, or it cannot do what is asked.
    """
    if kernel not in KERNELS:
        raise UserError(f"training.attention_kernel {kernel} is unknown: use {', '.join(KERNELS)} or auto")
    if not dropout_rate:
        dropout_key = None
    if dropout_key is not None and kernel in ("cudnn", "splash"):
        raise UserError(
            f"training.attention_kernel {kernel} has no dropout, but model.attention_dropout is {dropout_rate}: use "
            "auto, reference or chunked, or set model.attention_dropout to 0"
        )
    assert window is None or window > 0
    if window is not None and window >= q_BKGTH.shape[3]:
        window = None
    if kernel == "splash":
        interpret = (platform or jax.default_backend()) != "tpu"
        return splash_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, window, block_size, layout, interpret)
    if kernel == "cudnn":
        out_BKGTH = cudnn_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, window, layout)
    elif kernel == "chunked":
        out_BKGTH = chunked_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, window, dropout_rate, dropout_key)
    else:
        out_BKGTH = _reference_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, window, dropout_rate, dropout_key)
    return checkpoint_name(out_BKGTH, ATTENTION)


def cached_attention(q_BKGTH: jax.Array, keys: Slots, values: Slots, visible_BKTS: jax.Array) -> jax.Array:
    """Attention of new queries to the slots of a cache where `visible_BKTS` is true; scores are float32.

    If all kv heads see the same, K may be 1 in `visible_BKTS`. A query that sees no slot (padding may be one) gets the
    mean of all values, which is of no use but finite.

    Returns:
        [B, K, G, T, H] in q's dtype.
    """
    return attention_to_slots(q_BKGTH, keys, values, visible_BKTS | ~visible_BKTS.any(axis=3, keepdims=True))[0]


def attention_to_slots(
    q_BKGTH: jax.Array, keys: Slots, values: Slots, visible_BKTS: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same where every query is known to see a slot, of which no pass over the mask has to make sure.

    Returns:
        [B, K, G, T, H] in q's dtype, and the softmax weights, float32 [B, K, G, T, S].
    """
    B, K, G, T, H = q_BKGTH.shape
    q = q_BKGTH.reshape(B, K, G * T, H)
    bias = bias_of(visible_BKTS, G)
    if G * T <= FEW_QUERIES:
        out, weights = few_queries_attention(q, keys, values, bias)
    else:
        out, weights = attention_and_weights(q, keys.read(q.dtype), values.read(q.dtype), bias)
    return out.reshape(q_BKGTH.shape), weights.reshape(B, K, G, T, -1)


def _reference_attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    B, K, G, T, H = q_BKGTH.shape
    bias = bias_of(visible(0, 0, T, segment_ids_BT, window)[:, None], G)
    out = dropped_softmax_attention(q_BKGTH.reshape(B, K, G * T, H), k_BKTH, v_BKTH, bias, dropout_rate, dropout_key)
    return out.reshape(q_BKGTH.shape)

"""Causal attention for CPUs: chunks of queries attend to the keys that they may see, and skip most other keys."""

import functools

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.attention.softmax import bias_of, dropped_softmax_attention, softmax_attention

# Small chunks seldom multiply future keys; few chunks compile quickly.
SMALLEST_QUERY_CHUNK = 64
MOST_QUERY_CHUNKS = 8


def chunked_attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Attention as kernels.attention describes it: [B, K, G, T, H]."""
    B, K, G, T, H = q_BKGTH.shape
    chunk = max(SMALLEST_QUERY_CHUNK, -(-T // MOST_QUERY_CHUNKS))
    if window is not None and max(SMALLEST_QUERY_CHUNK, window) < chunk:
        # Each of so few chunks would see many keys that the window hides.
        return _banded_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, window, dropout_rate, dropout_key)
    ends = (*range(chunk, T, chunk), T)
    starts = (0, *ends[:-1])
    # The first key that each chunk can see, rounded down to where a chunk starts.
    firsts = tuple(0 if window is None else max(0, start - window + 1) // chunk * chunk for start in starts)
    sizes = [end - start for start, end in zip(starts, ends, strict=True)]
    queries = jax.lax.split(q_BKGTH, sizes, 3)
    keys, values = _stretches(k_BKTH, firsts, ends), _stretches(v_BKTH, firsts, ends)
    outputs = []
    for first, end, size, q, k, v in zip(firsts, ends, sizes, queries, keys, values, strict=True):
        bias = bias_of(visible(end - size, first, end, segment_ids_BT, window)[:, None], G)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, end)
        out = _block_attention(q.reshape(B, K, G * size, H), k, v, bias, dropout_rate, key)
        outputs.append(out.reshape(B, K, G, size, H))
    return jnp.concatenate(outputs, axis=3)


def visible(start: int, first: int, end: int, segment_ids_BT: jax.Array | None, window: int | None) -> jax.Array:
    """Whether the queries start … end - 1 may see each of the keys first … end - 1: bool [B or 1, T, S]."""
    keys_S, queries_T1 = jnp.arange(first, end), jnp.arange(start, end)[:, None]
    visible_BTS = (keys_S <= queries_T1)[None]
    if window is not None:
        visible_BTS = visible_BTS & (keys_S > queries_T1 - window)
    if segment_ids_BT is not None:
        visible_BTS = visible_BTS & (segment_ids_BT[:, start:end, None] == segment_ids_BT[:, None, first:end])
    return visible_BTS


def _block_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array, dropout_rate: float, key: jax.Array | None
) -> jax.Array:
    if key is None:
        return softmax_attention(q, k, v, bias)
    return dropped_softmax_attention(q, k, v, bias, dropout_rate, key)


def _banded_attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """Attention with a short window: all blocks are rows of one batch, and see their own keys and the block before.

    The window is not longer than a block, so time and memory grow with T · window, and the program does not grow.
    """
    B, K, G, T, H = q_BKGTH.shape
    block = max(SMALLEST_QUERY_CHUNK, window)
    n = -(-T // block)
    padding = n * block - T
    segments = jnp.zeros((1, T), jnp.int32) if segment_ids_BT is None else segment_ids_BT
    segments = jnp.pad(segments, ((0, 0), (0, padding))).reshape(-1, n, block)

    q = jnp.pad(q_BKGTH, ((0, 0), (0, 0), (0, 0), (0, padding), (0, 0)))
    q = q.reshape(B, K, G, n, block, H).transpose(0, 3, 1, 2, 4, 5).reshape(B * n, K, G * block, H)

    def with_block_before(x_BKTH: jax.Array) -> jax.Array:
        x = jnp.pad(x_BKTH, ((0, 0), (0, 0), (0, padding), (0, 0))).reshape(B, K, n, block, H)
        before = jnp.pad(x[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0)))
        return jnp.concatenate([before, x], axis=3).transpose(0, 2, 1, 3, 4).reshape(B * n, K, 2 * block, H)

    distance_TS = jnp.arange(block)[:, None] + block - jnp.arange(2 * block)
    in_window_TS = (distance_TS >= 0) & (distance_TS < window)
    exists_nS = (jnp.arange(n)[:, None] > 0) | (jnp.arange(2 * block) >= block)
    before = jnp.pad(segments[:, :-1], ((0, 0), (1, 0), (0, 0)))
    same_segment = segments[..., None] == jnp.concatenate([before, segments], axis=2)[:, :, None]
    visible_BnTS = in_window_TS & exists_nS[:, None] & same_segment
    visible_BnTS = jnp.broadcast_to(visible_BnTS, (B, *visible_BnTS.shape[1:])).reshape(B * n, block, 2 * block)

    out = _block_attention(
        q,
        with_block_before(k_BKTH),
        with_block_before(v_BKTH),
        bias_of(visible_BnTS[:, None], G),
        dropout_rate,
        dropout_key,
    )
    out = out.reshape(B, n, K, G, block, H).transpose(0, 2, 3, 1, 4, 5).reshape(B, K, G, n * block, H)
    return out[:, :, :, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _stretches(x_BKTH: jax.Array, firsts: tuple[int, ...], ends: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """x[:, :, first:end] for each first and end; every first is 0 or one of the ends, and the ends rise to T.

    The gradient is summed from end to end; the gradient of plain slices would pad each of them to T.
    """
    return tuple(x_BKTH[:, :, first:end] for first, end in zip(firsts, ends, strict=True))


def _stretches_forward(
    x_BKTH: jax.Array, firsts: tuple[int, ...], ends: tuple[int, ...]
) -> tuple[tuple[jax.Array, ...], None]:
    return _stretches(x_BKTH, firsts, ends), None


def _stretches_backward(
    firsts: tuple[int, ...], ends: tuple[int, ...], _: None, gradients: tuple[jax.Array, ...]
) -> tuple[jax.Array]:
    sums = []
    for index, (start, end) in enumerate(zip((0, *ends), ends, strict=False)):
        sharers = zip(firsts[index:], gradients[index:], strict=True)
        parts = [gradient[:, :, start - first : end - first] for first, gradient in sharers if first <= start]
        sums.append(functools.reduce(jnp.add, parts))
    return (jnp.concatenate(sums, axis=2),)


_stretches.defvjp(_stretches_forward, _stretches_backward)

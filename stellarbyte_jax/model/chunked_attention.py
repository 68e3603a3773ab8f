"""Causal attention for CPUs: blocks of queries against the keys that they may see, most of the rest skipped."""

import functools

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.softmax_attention import bias_of, dropped_softmax_attention, softmax_attention

# Chunks small enough that future keys are seldom multiplied, few enough to compile quickly.
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
    """As attention_kernels.attention: [B, K, G, T, H]."""
    B, K, G, T, H = q_BKGTH.shape
    if window is not None:
        block = max(SMALLEST_QUERY_CHUNK, window)
        # A band of two blocks is less than half of T / 2 keys, what chunks look at in the mean.
        if 4 * block < T:
            return _banded_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, window, block, dropout_rate, dropout_key)
    chunk = max(SMALLEST_QUERY_CHUNK, -(-T // MOST_QUERY_CHUNKS))
    ends = (*range(chunk, T, chunk), T)
    sizes = [end - start for start, end in zip((0, *ends), ends, strict=False)]
    chunks = zip(
        ends, sizes, jax.lax.split(q_BKGTH, sizes, 3), _prefixes(k_BKTH, ends), _prefixes(v_BKTH, ends), strict=True
    )
    outputs = []
    for end, size, q, k, v in chunks:
        bias = bias_of(visible(end - size, end, segment_ids_BT, window), G)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, end)
        out = _block_attention(q.reshape(B, K, G * size, H), k, v, bias, dropout_rate, key)
        outputs.append(out.reshape(B, K, G, size, H))
    return jnp.concatenate(outputs, axis=3)


def visible(start: int, end: int, segment_ids_BT: jax.Array | None, window: int | None) -> jax.Array:
    """Where queries start … end - 1 may look: bool [B or 1, end - start, end]."""
    distance_TS = jnp.arange(start, end)[:, None] - jnp.arange(end)
    visible_BTS = (distance_TS >= 0)[None]
    if window is not None and window < end:
        visible_BTS = visible_BTS & (distance_TS < window)
    if segment_ids_BT is not None:
        visible_BTS = visible_BTS & (segment_ids_BT[:, start:end, None] == segment_ids_BT[:, None, :end])
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
    block: int,
    dropout_rate: float,
    dropout_key: jax.Array | None,
) -> jax.Array:
    """All blocks at once, as rows of one batch: a block of queries sees its own keys and those of the block before.

    A window is no longer than a block, so time and memory grow with T · window, and the program not at all.
    """
    B, K, G, T, H = q_BKGTH.shape
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
        q, with_block_before(k_BKTH), with_block_before(v_BKTH), bias_of(visible_BnTS, G), dropout_rate, dropout_key
    )
    out = out.reshape(B, n, K, G, block, H).transpose(0, 2, 3, 1, 4, 5).reshape(B, K, G, n * block, H)
    return out[:, :, :, :T]


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

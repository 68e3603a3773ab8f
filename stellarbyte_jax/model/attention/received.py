"""Adds up the attention that each key receives, for policies of a pruned cache."""

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.attention.softmax import bias_of
from stellarbyte_jax.model.slots import Slots

# So many queries are looked at together, so that no array grows with the square of a prompt.
_CHUNK = 128


def attention_received(
    q_BKGTH: jax.Array,
    keys: Slots,
    index_BKS: jax.Array,
    *,
    starts_BT: jax.Array,
    numbers_BT: jax.Array,
    real_BT: jax.Array,
    window: int | None,
) -> jax.Array:
    """The softmax weights of each key, summed over the queries, the mean over the G heads: float32 [B, K, S].

    Args:
        q_BKGTH: the queries, scaled by 1 / sqrt(H).
        keys: the keys.
        index_BKS: the number of each key's token; -1: there is no key.
        starts_BT: the number of the first token that each query sees, whatever the window.
        numbers_BT: the number of each query's token.
        real_BT: whether a query counts; such a query sees a key.
        window: the model's sliding window.
    """
    (B, K, G, T, H), index_BK1S = q_BKGTH.shape, index_BKS[:, :, None]

    def received(q_BKGTH: jax.Array, starts_BT: jax.Array, numbers_BT: jax.Array, real_BT: jax.Array) -> jax.Array:
        T = real_BT.shape[1]
        numbers_B1T1 = numbers_BT[:, None, :, None]
        visible_BKTS = (index_BK1S >= jnp.maximum(starts_BT, 0)[:, None, :, None]) & (index_BK1S <= numbers_B1T1)
        if window is not None:
            visible_BKTS &= index_BK1S > numbers_B1T1 - window
        q_BKQH = q_BKGTH.reshape(B, K, G * T, H)
        bias_BKQS = bias_of(visible_BKTS | ~real_BT[:, None, :, None], G)
        k_BKSH = keys.read(q_BKQH.dtype)
        scores_BKQS = jnp.einsum("BKQH,BKSH->BKQS", q_BKQH, k_BKSH, preferred_element_type=jnp.float32) + bias_BKQS
        weights = jnp.exp(scores_BKQS - scores_BKQS.max(axis=-1, keepdims=True))
        weights_BKGTS = (weights / weights.sum(axis=-1, keepdims=True)).reshape(B, K, G, T, -1)
        return (weights_BKGTS * real_BT[:, None, None, :, None]).sum(axis=(2, 3)) / G

    if T <= _CHUNK:
        return received(q_BKGTH, starts_BT, numbers_BT, real_BT)
    n = -(-T // _CHUNK)
    behind = n * _CHUNK - T
    q_nBKGTH = jnp.pad(q_BKGTH, ((0, 0),) * 3 + ((0, behind), (0, 0)))
    q_nBKGTH = jnp.moveaxis(q_nBKGTH.reshape(B, K, G, n, _CHUNK, H), 3, 0)
    others = (jnp.pad(x_BT, ((0, 0), (0, behind))) for x_BT in (starts_BT, numbers_BT, real_BT))
    chunks = (q_nBKGTH, *(x_BT.reshape(B, n, _CHUNK).swapaxes(0, 1) for x_BT in others))
    nothing_BKS = jnp.zeros(index_BKS.shape, jnp.float32)
    return jax.lax.scan(lambda sum_BKS, chunk: (sum_BKS + received(*chunk), None), nothing_BKS, chunks)[0]

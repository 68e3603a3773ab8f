"""Grouped-query self-attention: projections and positions around a kernel."""

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.attention_kernels import cached_attention, causal_attention
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.linear import Linear
from stellarbyte_jax.model.rope import RotaryTables, rotate


class Attention(nnx.Module):
    """Causal self-attention with K key/value heads, each serving G = N / K query heads (Ainslie et al. 2023)."""

    def __init__(
        self, config: ByteConfig, *, output_stddev: float, dtype: jnp.dtype, platform: str, rngs: nnx.Rngs
    ) -> None:
        D, N, K, H = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        assert K is not None and H is not None
        stddev = config.initializer_range
        self.q_proj = Linear(D, N * H, axes=("hidden", "heads"), stddev=stddev, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(D, K * H, axes=("hidden", "kv_heads"), stddev=stddev, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(D, K * H, axes=("hidden", "kv_heads"), stddev=stddev, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(N * H, D, axes=("heads", "hidden"), stddev=output_stddev, dtype=dtype, rngs=rngs)
        self.num_kv_heads, self.head_dim, self.platform = K, H, platform

    def __call__(self, x_BTD: jax.Array, tables: RotaryTables, segment_ids_BT: jax.Array | None) -> jax.Array:
        """Attend within the sequence: [B, T, D] -> [B, T, D]."""
        q_BKGTH, k_BKTH, v_BKTH = self._queries_keys_values(x_BTD, tables)
        return self._join(causal_attention(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, self.platform))

    def with_cache(
        self, x_BTD: jax.Array, tables: RotaryTables, visible_BTS: jax.Array, cache: KVCache, layer: int
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Attend to the cache and to itself: [B, T, D] -> [B, T, D] and this layer's new keys and values."""
        q_BKGTH, k_BKTH, v_BKTH = self._queries_keys_values(x_BTD, tables)
        k_BKSH, v_BKSH = cache.append(layer, k_BKTH, v_BKTH)
        return self._join(cached_attention(q_BKGTH, k_BKSH, v_BKSH, visible_BTS)), (k_BKSH, v_BKSH)

    def _queries_keys_values(self, x_BTD: jax.Array, tables: RotaryTables) -> tuple[jax.Array, jax.Array, jax.Array]:
        (B, T, _), K, H = x_BTD.shape, self.num_kv_heads, self.head_dim
        q_BNTH = self.q_proj(x_BTD).reshape(B, T, -1, H).transpose(0, 2, 1, 3)
        k_BKTH = self.k_proj(x_BTD).reshape(B, T, K, H).transpose(0, 2, 1, 3)
        v_BKTH = self.v_proj(x_BTD).reshape(B, T, K, H).transpose(0, 2, 1, 3)
        # 1/sqrt(H) rides on the query's tables: no pass of its own.
        q_BNTH = rotate(q_BNTH, tables.q_cos[:, None] * H**-0.5, tables.q_sin[:, None] * H**-0.5)
        k_BKTH = rotate(k_BKTH, tables.k_cos[:, None], tables.k_sin[:, None])
        return q_BNTH.reshape(B, K, -1, T, H), k_BKTH, v_BKTH

    def _join(self, out_BKGTH: jax.Array) -> jax.Array:
        B, _, _, T, H = out_BKGTH.shape
        return self.o_proj(out_BKGTH.reshape(B, -1, T, H).transpose(0, 2, 1, 3).reshape(B, T, -1))

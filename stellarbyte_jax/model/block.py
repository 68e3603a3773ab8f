"""One decoder layer: attention, then feed-forward, each added to the residual stream."""

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.attention import Attention
from stellarbyte_jax.model.feed_forward import FeedForward
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.norm import RMSNorm
from stellarbyte_jax.model.rope import RotaryTables


class Block(nnx.Module):
    """Pre-norm residual layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ByteConfig, *, dtype: jnp.dtype, platform: str, rngs: nnx.Rngs) -> None:
        # 2L branches add up in the residual stream: each starts smaller by sqrt(2L) (Radford et al. 2019).
        output_stddev = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, output_stddev=output_stddev, dtype=dtype, platform=platform, rngs=rngs)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config, output_stddev=output_stddev, dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, tables: RotaryTables, segment_ids_BT: jax.Array | None) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), tables, segment_ids_BT)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))

    def with_cache(
        self, x_BTD: jax.Array, tables: RotaryTables, visible_BTS: jax.Array, cache: KVCache, layer: int
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """The same behind a cache: [B, T, D] and this layer's new keys and values."""
        attended, keys_values = self.self_attn.with_cache(
            self.input_layernorm(x_BTD), tables, visible_BTS, cache, layer
        )
        x_BTD = x_BTD + attended
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD)), keys_values

"""The memory of a decoder: keys and values of the tokens that it has read."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte_jax.config import ByteConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Preallocated keys and values, one array a layer, so that each is updated in place.

    Row b's slot s holds a token of document `segment_ids[b, s]`; 0 marks padding. All rows fill slots in step: prompts
    of unequal length are padded on the left. Slots from `length` on are empty.
    """

    keys: tuple[jax.Array, ...]  # L × [B, K, S, H]
    values: tuple[jax.Array, ...]  # L × [B, K, S, H]
    segment_ids: jax.Array  # int32 [B, S]
    length: jax.Array  # int32 []

    @staticmethod
    def create(config: ByteConfig, batch_size: int, capacity: int, dtype: DTypeLike = jnp.float32) -> "KVCache":
        """An empty cache for `capacity` tokens a row."""
        assert config.num_key_value_heads is not None and config.head_dim is not None
        shape = (batch_size, config.num_key_value_heads, capacity, config.head_dim)
        return KVCache(
            keys=tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)),
            values=tuple(jnp.zeros(shape, dtype) for _ in range(config.num_hidden_layers)),
            segment_ids=jnp.zeros((batch_size, capacity), jnp.int32),
            length=jnp.zeros((), jnp.int32),
        )

    def append_segments(self, segment_ids_BT: jax.Array) -> jax.Array:
        """Segment ids [B, S] once the T new tokens stand behind the `length` old ones."""
        return jax.lax.dynamic_update_slice(self.segment_ids, segment_ids_BT, (0, self.length))

    def append(self, layer: int, k_BKTH: jax.Array, v_BKTH: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values [B, K, S, H] of one layer with the T new ones written in."""
        start = (0, 0, self.length, 0)
        keys, values = self.keys[layer], self.values[layer]
        return (
            jax.lax.dynamic_update_slice(keys, k_BKTH.astype(keys.dtype), start),
            jax.lax.dynamic_update_slice(values, v_BKTH.astype(values.dtype), start),
        )

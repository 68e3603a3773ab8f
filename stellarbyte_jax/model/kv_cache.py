"""The memory of a decoder: keys and values of the tokens that it has read."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte_jax.config import ByteConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CacheView:
    """What the T tokens of a call see of a cache, themselves included: bool [B, T, S]; and where they are written."""

    visible_BTS: jax.Array
    segment_ids_BS: jax.Array
    start: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer: [B, K, S, H]."""

    keys: jax.Array
    values: jax.Array

    def append(
        self, k_BKTH: jax.Array, v_BKTH: jax.Array, view: CacheView
    ) -> tuple[jax.Array, jax.Array, "LayerCache"]:
        """(keys, values) to attend to, [B, K, S, H] as `view` counts them, and the cache with the T new ones in it."""
        start = (0, 0, view.start, 0)
        keys = jax.lax.dynamic_update_slice(self.keys, k_BKTH.astype(self.keys.dtype), start)
        values = jax.lax.dynamic_update_slice(self.values, v_BKTH.astype(self.values.dtype), start)
        return keys, values, LayerCache(keys, values)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Preallocated keys and values, one array a layer, so that each is updated in place.

    Row b's slot s holds a token of document `segment_ids[b, s]`; 0 marks padding. All rows fill slots in step: prompts
    of unequal length are padded on the left. Slots from `length` on are empty.
    """

    layers: tuple[LayerCache, ...]
    segment_ids: jax.Array  # int32 [B, S]
    length: jax.Array  # int32 []

    @staticmethod
    def create(config: ByteConfig, batch_size: int, capacity: int, dtype: DTypeLike = jnp.float32) -> "KVCache":
        """An empty cache for `capacity` tokens a row."""
        assert config.num_key_value_heads is not None and config.head_dim is not None
        shape = (batch_size, config.num_key_value_heads, capacity, config.head_dim)
        return KVCache(
            layers=tuple(
                LayerCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.num_hidden_layers)
            ),
            segment_ids=jnp.zeros((batch_size, capacity), jnp.int32),
            length=jnp.zeros((), jnp.int32),
        )

    def next_positions(self, count: int) -> jax.Array:
        """Positions of the next `count` tokens: int32 [B or 1, count]."""
        return (self.length + jnp.arange(count, dtype=jnp.int32))[None]

    def view(self, segment_ids_BT: jax.Array) -> CacheView:
        """What T new tokens of these segments will see."""
        T, S = segment_ids_BT.shape[1], self.segment_ids.shape[1]
        segment_ids_BS = jax.lax.dynamic_update_slice(self.segment_ids, segment_ids_BT, (0, self.length))
        slots_T = self.length + jnp.arange(T)
        visible_BTS = (jnp.arange(S) <= slots_T[:, None]) & (segment_ids_BT[:, :, None] == segment_ids_BS[:, None, :])
        return CacheView(visible_BTS, segment_ids_BS, self.length)

    def advanced(self, layers: tuple[LayerCache, ...], view: CacheView) -> "KVCache":
        """The cache once every layer has appended the tokens of `view`."""
        return KVCache(layers, view.segment_ids_BS, self.length + view.visible_BTS.shape[1])

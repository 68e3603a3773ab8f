"""The key/value cache: keys and values of the tokens that a decoder has read."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.attention.kernels import cached_attention
from stellarbyte_jax.model.caches import NewTokens
from stellarbyte_jax.model.slots import Slots, check_cache_dtype


@dataclass(frozen=True)
class CacheView:
    """How the T new tokens of a call use a cache; all layers share it.

    visible_BTS: whether each new token sees each key that a layer's `attend` reads. None if the cache is empty: the
        new tokens then see only one another, as without a cache.
    slots_BT: the slot each new token is written to before attention. None if writing first would overwrite keys that
        the earliest new token still has to see (a ring that is too small), or if the cache is empty; the keys are then
        stored after attention, by source_BS.
    source_BS: for each slot, the index of the new token to store there, or a negative number to leave the slot as it
        is.
    """

    visible_BTS: jax.Array | None
    slots_BT: jax.Array | None
    source_BS: jax.Array | None
    segment_ids_BS: jax.Array
    lengths_B: jax.Array

    @property
    def fresh(self) -> bool:
        """Whether the cache is empty."""
        return self.visible_BTS is None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FullLayer:
    """Keys and values of one layer."""

    keys: Slots
    values: Slots

    def attend(self, tokens: NewTokens, view: CacheView) -> tuple[jax.Array, "FullLayer"]:
        """The attention of the new tokens, [B, K, G, T, H], and the cache with them stored."""
        k_BKTH, v_BKTH = tokens.k_BKTH, tokens.v_BKTH
        if view.slots_BT is not None:
            keys, values = self.keys.write(k_BKTH, view.slots_BT), self.values.write(v_BKTH, view.slots_BT)
            cache = FullLayer(keys, values)
        else:
            keys = Slots(jnp.concatenate([self.keys.read(k_BKTH.dtype), k_BKTH], axis=2))
            values = Slots(jnp.concatenate([self.values.read(v_BKTH.dtype), v_BKTH], axis=2))
            cache = self.take(tokens, view)
        assert view.visible_BTS is not None
        return cached_attention(tokens.q_BKGTH, keys, values, view.visible_BTS[:, None]), cache

    def take(self, tokens: NewTokens, view: CacheView) -> "FullLayer":
        """The cache with the new keys and values that `view.source_BS` stores."""
        assert view.source_BS is not None
        return FullLayer(self.keys.take(tokens.k_BKTH, view.source_BS), self.values.take(tokens.v_BKTH, view.source_BS))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Preallocated keys and values, one array a layer, so that each is updated in place.

    Row b has read `lengths[b]` tokens. Token n lies in slot n, or in slot n mod S of a ring. A ring holds the last S
    tokens: as many as a sliding window needs, and some slack. Tokens of segment 0 are padding, which no other segment
    sees. Padding at the end of a row is not stored and does not count in its length, so prompts of unequal length may
    be padded on the left or on the right.
    """

    layers: tuple[FullLayer, ...]
    segment_ids: jax.Array  # int32 [B, S]
    lengths: jax.Array  # int32 [B]
    window: int | None = field(metadata={"static": True})
    ring: bool = field(metadata={"static": True})
    fresh: bool = field(metadata={"static": True})  # no token was read so far

    @staticmethod
    def create(
        config: ByteConfig, batch_size: int, capacity: int, dtype: DTypeLike = jnp.float32, slack: int = 0
    ) -> "KVCache":
        """An empty cache for `capacity` tokens a row; with a sliding window it has room for the window and `slack`.

        With a sliding window the cache is a ring. `clip` can undo at most `slack` tokens of it. A call with more than
        slack + 1 tokens rewrites the whole ring; a smaller call writes only its own tokens.

        Raises:
            UserError: dtype is none of CACHE_DTYPES.
        """
        check_cache_dtype(dtype)
        window = config.sliding_window
        size = capacity if window is None else min(capacity, window + slack)
        assert config.num_key_value_heads is not None and config.head_dim is not None
        shape = (batch_size, config.num_key_value_heads, size, config.head_dim)
        return KVCache(
            layers=tuple(
                FullLayer(Slots.create(shape, dtype), Slots.create(shape, dtype))
                for _ in range(config.num_hidden_layers)
            ),
            segment_ids=jnp.zeros((batch_size, size), jnp.int32),
            lengths=jnp.zeros((batch_size,), jnp.int32),
            window=window,
            ring=size < capacity,
            fresh=True,
        )

    @staticmethod
    def of(config: ByteConfig, keys: Sequence[jax.Array], values: Sequence[jax.Array], room: int) -> "KVCache":
        """A cache of arrays that hold S tokens of each layer, [B, K, S, H], with room for `room` more tokens."""

        def slots(x_BKSH: jax.Array) -> Slots:
            return Slots(jnp.pad(x_BKSH, ((0, 0), (0, 0), (0, room), (0, 0))))

        B, _, S, _ = keys[0].shape
        return KVCache(
            layers=tuple(FullLayer(slots(k), slots(v)) for k, v in zip(keys, values, strict=True)),
            segment_ids=jnp.ones((B, S + room), jnp.int32),
            lengths=jnp.full((B,), S, jnp.int32),
            window=config.sliding_window,
            ring=False,
            fresh=False,
        )

    def next_positions(self, count: int) -> jax.Array:
        """The positions of the next `count` tokens: int32 [B, count]."""
        return self.lengths[:, None] + jnp.arange(count, dtype=jnp.int32)

    def clip(self, lengths_B: jax.Array) -> "KVCache":
        """The cache without the tokens from number `lengths_B` on; a ring can drop at most `slack` tokens."""
        return dataclasses.replace(self, lengths=jnp.minimum(self.lengths, lengths_B))

    def reset(self, rows_B: jax.Array) -> "KVCache":
        """The cache with the rows emptied where `rows_B` is true."""
        return dataclasses.replace(self, lengths=jnp.where(rows_B, 0, self.lengths))

    def view(self, count: int, segment_ids_BT: jax.Array | None) -> CacheView:
        """The view for `count` new tokens of each row; by default all of them are of segment 1."""
        (B, S), T = self.segment_ids.shape, count
        kept_B: Any = T
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones((B, T), jnp.int32)
        else:
            kept_B = jnp.max((segment_ids_BT != 0) * jnp.arange(1, T + 1, dtype=jnp.int32), axis=1)
        lengths_B, numbers_BT = self.lengths + kept_B, self.next_positions(T)

        in_place = not self.ring or (self.window is not None and S - self.window >= T - 1)
        if in_place and not self.fresh:
            slots_BT = numbers_BT % S if self.ring else numbers_BT
            segment_ids_BS = self.segment_ids.at[jnp.arange(B)[:, None], slots_BT].set(segment_ids_BT, mode="drop")
            visible_BTS = self._visible(numbers_BT, segment_ids_BT, self._numbers(self.lengths + T), segment_ids_BS)
            return CacheView(visible_BTS, slots_BT, None, segment_ids_BS, lengths_B)

        source_BS = self._numbers(lengths_B) - self.lengths[:, None]
        taken_BS = jnp.take_along_axis(segment_ids_BT, jnp.maximum(source_BS, 0), axis=1)
        segment_ids_BS = jnp.where(source_BS >= 0, taken_BS, self.segment_ids)
        if self.fresh:
            return CacheView(None, None, source_BS, segment_ids_BS, lengths_B)
        before_BTS = self._visible(numbers_BT, segment_ids_BT, self._numbers(self.lengths), self.segment_ids)
        among_BTT = self._visible(numbers_BT, segment_ids_BT, numbers_BT, segment_ids_BT)
        visible_BTS = jnp.concatenate([before_BTS, among_BTT], axis=2)
        return CacheView(visible_BTS, None, source_BS, segment_ids_BS, lengths_B)

    def advanced(self, layers: tuple[Any, ...], view: CacheView) -> "KVCache":
        """The cache after every layer has stored the tokens of `view`."""
        return dataclasses.replace(
            self, layers=layers, segment_ids=view.segment_ids_BS, lengths=view.lengths_B, fresh=False
        )

    def _numbers(self, lengths_B: jax.Array) -> jax.Array:
        """The number of the token in each slot of rows of these lengths: int32 [B, S]; negative if there is none."""
        last_B1, slots_S = lengths_B[:, None] - 1, jnp.arange(self.segment_ids.shape[1], dtype=jnp.int32)
        if self.ring:
            return last_B1 - (last_B1 - slots_S) % slots_S.size
        return jnp.where(slots_S <= last_B1, slots_S, -1)

    def _visible(
        self, numbers_BT: jax.Array, segment_ids_BT: jax.Array, numbers_BS: jax.Array, segment_ids_BS: jax.Array
    ) -> jax.Array:
        """bool [B, T, S]: whether a key exists, is not later than the query, is in its window and its segment."""
        distance_BTS = numbers_BT[:, :, None] - numbers_BS[:, None, :]
        visible_BTS = (distance_BTS >= 0) & (numbers_BS >= 0)[:, None, :]
        if self.window is not None:
            visible_BTS &= distance_BTS < self.window
        return visible_BTS & (segment_ids_BT[:, :, None] == segment_ids_BS[:, None, :])

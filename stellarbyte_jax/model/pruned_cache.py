"""A key/value cache within a budget: it keeps the tokens that a policy finds most important."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte.architecture import ByteConfig
from stellarbyte.kv_cache.budgets import check_heads
from stellarbyte.kv_cache.evidence import WINDOW_QUERIES
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.selection import room
from stellarbyte_jax.model.kv_cache import check_cache_dtype
from stellarbyte_jax.model.pooled_layer import PooledLayer
from stellarbyte_jax.model.pruned_layer import PrunedLayer


@dataclass(frozen=True)
class PrunedView:
    """How the T new tokens of a call use a pruned cache; all layers share it.

    A token's number is its place in its row, counted from 0. Rows may be packed with documents, one after another, of
    which a token sees only its own.

    fresh: whether the cache is empty.
    real_BT: whether a token is no padding.
    numbers_BT: the numbers of the tokens.
    starts_BT: the number of the first token that each sees, whatever the window: where its document begins.
    lengths_B, firsts_B, segments_B, full: the cache's fields of these names after the call. before_B, full_before:
        `lengths` and `full` before it.
    query_slots_BT: the place among the remembered queries that each token's query takes; W: none.
    query_index_BW, earlier_query_index_BW: the cache's `query_index` after the call and before it.
    last_B: the place in T of each row's last token that is no padding; 0 if there is none.
    """

    fresh: bool
    real_BT: jax.Array
    numbers_BT: jax.Array
    starts_BT: jax.Array
    before_B: jax.Array
    full_before: Mapping[int, jax.Array]
    full: Mapping[int, jax.Array]
    lengths_B: jax.Array
    firsts_B: jax.Array
    segments_B: jax.Array
    last_B: jax.Array
    query_slots_BT: jax.Array
    query_index_BW: jax.Array
    earlier_query_index_BW: jax.Array


def _full_after(full_B: jax.Array, new_B: jax.Array, slots: int, count: int) -> jax.Array:
    """How many slots are full after a call of `count` tokens, `new_B` of which are no padding: int32 [B]."""
    left = slots - room(slots)
    if count == 1:
        return jnp.where(full_B + new_B > slots, left, full_B) + new_B
    return jnp.where(full_B + new_B > slots, left, full_B + new_B)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrunedCache:
    """Keys and values of a fixed number of slots in each kv head of each layer, one array a layer.

    stellarbyte/kv_cache/selection.py has the rules of what is kept. A call of one token prunes rows whose slots are
    full before it is stored. A call of several tokens lets them attend to all that was stored and to one another; then
    rows that hold more than their slots are pruned. Where all tokens fit, nothing is ever dropped.

    full: how many slots of each head are full in layers of so many slots. All heads of a row have read the same tokens,
        so this depends on no policy; layers of one size share it.
    lengths: the number of tokens that each row has read; padding counts, except at the end of a row.
    firsts: the number of the first token of each row's present document. segments: its segment id; 0 before any.
    query_index: the numbers of the tokens whose queries are remembered, in slot (number mod W); -1: none.
    """

    layers: tuple[PrunedLayer | PooledLayer, ...]
    full: dict[int, jax.Array]  # int32 [B]
    lengths: jax.Array  # int32 [B]
    firsts: jax.Array  # int32 [B]
    segments: jax.Array  # int32 [B]
    query_index: jax.Array  # int32 [B, W]
    fresh: bool = field(metadata={"static": True})  # no token was read so far

    @staticmethod
    def create(
        config: ByteConfig,
        batch_size: int,
        layer_slots: Sequence[int],
        policy: Policy,
        dtype: DTypeLike = jnp.float32,
        *,
        shared: bool = False,
    ) -> "PrunedCache":
        """An empty cache with so many slots for each kv head of each layer; `shared`: on average over its heads.

        Raises:
            UserError: dtype is none of CACHE_DTYPES, or `shared` is for heads of which one is read by none.
        """
        if shared:
            check_heads(config)
        check_cache_dtype(dtype)
        assert len(layer_slots) == config.num_hidden_layers
        kind: type[PrunedLayer | PooledLayer] = PooledLayer if shared else PrunedLayer
        return PrunedCache(
            layers=tuple(kind.create(config, batch_size, slots, policy, dtype) for slots in layer_slots),
            full={slots: jnp.zeros((batch_size,), jnp.int32) for slots in layer_slots},
            lengths=jnp.zeros((batch_size,), jnp.int32),
            firsts=jnp.zeros((batch_size,), jnp.int32),
            segments=jnp.zeros((batch_size,), jnp.int32),
            query_index=jnp.full((batch_size, WINDOW_QUERIES), -1, jnp.int32),
            fresh=True,
        )

    def next_positions(self, count: int) -> jax.Array:
        """The positions of the next `count` tokens: int32 [B, count]."""
        return self.lengths[:, None] + jnp.arange(count, dtype=jnp.int32)

    def reset(self, rows_B: jax.Array) -> "PrunedCache":
        """The cache with the rows emptied where `rows_B` is true."""
        return PrunedCache(
            layers=tuple(layer.reset(rows_B) for layer in self.layers),
            full={slots: jnp.where(rows_B, 0, full_B) for slots, full_B in self.full.items()},
            lengths=jnp.where(rows_B, 0, self.lengths),
            firsts=jnp.where(rows_B, 0, self.firsts),
            segments=jnp.where(rows_B, 0, self.segments),
            query_index=jnp.where(rows_B[:, None], -1, self.query_index),
            fresh=self.fresh,
        )

    def view(self, count: int, segment_ids_BT: jax.Array | None) -> PrunedView:
        """The view for `count` new tokens of each row; by default all of them are of segment 1."""
        B, T = self.lengths.size, count
        if segment_ids_BT is None:
            segment_ids_BT = jnp.ones((B, T), jnp.int32)
        real_BT, numbers_BT = segment_ids_BT != 0, self.next_positions(T)
        kept_B = jnp.max(real_BT * jnp.arange(1, T + 1, dtype=jnp.int32), axis=1)
        last_B = jnp.maximum(kept_B - 1, 0)
        before_BT = jnp.concatenate([self.segments[:, None], segment_ids_BT[:, :-1]], axis=1)
        begins_BT = jnp.where(segment_ids_BT == before_BT, self.firsts[:, None], numbers_BT)
        starts_BT = jax.lax.cummax(begins_BT, axis=1)

        def of_last(x_BT: jax.Array, otherwise_B: jax.Array) -> jax.Array:
            return jnp.where(kept_B > 0, jnp.take_along_axis(x_BT, last_B[:, None], axis=1)[:, 0], otherwise_B)

        new_B = real_BT.sum(axis=1, dtype=jnp.int32)
        lengths_B = self.lengths + kept_B
        is_remembered_BT = real_BT & (numbers_BT >= lengths_B[:, None] - WINDOW_QUERIES)
        query_slots_BT = jnp.where(is_remembered_BT, numbers_BT % WINDOW_QUERIES, WINDOW_QUERIES)
        return PrunedView(
            fresh=self.fresh,
            real_BT=real_BT,
            numbers_BT=numbers_BT,
            starts_BT=starts_BT,
            before_B=self.lengths,
            full_before=self.full,
            full={slots: _full_after(full_B, new_B, slots, T) for slots, full_B in self.full.items()},
            lengths_B=lengths_B,
            firsts_B=of_last(starts_BT, self.firsts),
            segments_B=of_last(segment_ids_BT, self.segments),
            last_B=last_B,
            query_slots_BT=query_slots_BT,
            query_index_BW=self.query_index.at[jnp.arange(B)[:, None], query_slots_BT].set(numbers_BT, mode="drop"),
            earlier_query_index_BW=self.query_index,
        )

    def advanced(self, layers: tuple[Any, ...], view: PrunedView) -> "PrunedCache":
        """The cache after every layer has stored the tokens of `view`."""
        return PrunedCache(
            layers,
            dict(view.full),
            view.lengths_B,
            view.firsts_B,
            view.segments_B,
            view.query_index_BW,
            fresh=False,
        )

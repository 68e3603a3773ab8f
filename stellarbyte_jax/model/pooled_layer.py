"""One layer of a pruned cache whose kv heads share its slots: those that look at more tokens get more of them."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte.architecture import ByteConfig
from stellarbyte.kv_cache.budgets import LANES, MOST_LANES, head_lanes
from stellarbyte.kv_cache.evidence import Evidence
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.selection import keep, room
from stellarbyte_jax.model.caches import NewTokens
from stellarbyte_jax.model.pruned_layer import PrunedLayer
from stellarbyte_jax.model.slots import Slots

if TYPE_CHECKING:
    from stellarbyte_jax.model.pruned_cache import PrunedView


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PooledLayer:
    """Slots of one layer in V = LANES · K lanes of C / LANES slots: those of the first kv head, the next one's, ….

    A call of several tokens that overflows a row shares the row's lanes out anew. Decoding leaves them, and all heads
    of a row have the same number of empty slots, which are the last ones of their last lanes.

    pool: the lanes, in the place of kv heads; the queries that it remembers are those of the real heads.
    lanes: the number of lanes of each kv head.
    """

    pool: PrunedLayer
    lanes: jax.Array  # int32 [B, K]

    @staticmethod
    def create(config: ByteConfig, batch_size: int, slots: int, policy: Policy, dtype: DTypeLike) -> "PooledLayer":
        """An empty layer with so many slots, a multiple of LANES, for each kv head on average."""
        layer = PrunedLayer.create(config, batch_size, slots, policy, dtype)
        lanes = jnp.full(layer.index.shape[:2], LANES, jnp.int32)
        return PooledLayer(_in_heads(layer, LANES * lanes.shape[1]), lanes)

    @property
    def slots(self) -> int:
        """C, the mean slots of each kv head."""
        return LANES * self.pool.slots

    @property
    def keys(self) -> Slots:
        """The keys of all lanes."""
        return self.pool.keys

    @property
    def values(self) -> Slots:
        """The values of all lanes."""
        return self.pool.values

    @property
    def index(self) -> jax.Array:
        """The numbers of the tokens of each kv head, behind them -1: int32 [B, K, MOST_LANES · C / LANES]."""
        return self._by_head().index

    def take(self, tokens: NewTokens, view: "PrunedView") -> "PooledLayer":
        """The layer with the tokens of a first call, of which it keeps as many as it has slots."""
        slots, T, K = self.slots, tokens.k_BKTH.shape[2], self.lanes.shape[1]
        layer = _in_heads(self.pool, K).grown(max(0, T - slots))
        layer = layer.stored(tokens, view, view.full_before[slots]).observed(tokens, view)
        if slots >= T:
            return PooledLayer(_in_heads(layer, LANES * K), self.lanes)
        return self._cut(layer, tokens, view)

    def attend(self, tokens: NewTokens, view: "PrunedView") -> tuple[jax.Array, "PooledLayer"]:
        """The attention of the new tokens, [B, K, G, T, H], and the layer with them, within its slots."""
        if tokens.k_BKTH.shape[2] == 1:
            return self._attend_one(tokens, view)
        layer = self._by_head()
        behind_B = jnp.full(layer.index.shape[:1], layer.slots)
        out_BKGTH, layer = layer.grown(tokens.k_BKTH.shape[2]).attend_in_slots(tokens, view, behind_B)
        # Policies look at neighbours, so no slot between two tokens stays empty.
        order_BKS = jnp.argsort(layer.index < 0, axis=2, stable=True)
        is_full_BKS = jnp.take_along_axis(layer.index, order_BKS, axis=2) >= 0
        return out_BKGTH, self._cut(layer.gathered(jnp.where(is_full_BKS, order_BKS, -1)), tokens, view)

    def reset(self, rows_B: jax.Array) -> "PooledLayer":
        """The layer with the rows emptied where `rows_B` is true."""
        return PooledLayer(self.pool.reset(rows_B), jnp.where(rows_B[:, None], LANES, self.lanes))

    def _attend_one(self, tokens: NewTokens, view: "PrunedView") -> tuple[jax.Array, "PooledLayer"]:
        slots, is_real_B = self.slots, view.real_BT[:, 0]
        overflows_B = view.full_before[slots] + is_real_B > slots

        def pruned() -> PooledLayer:
            evidence = self._by_head().evidence(tokens, view, view.before_B, view.earlier_query_index_BW)
            held_BK = self._sizes(self.lanes) - (slots - view.full_before[slots])[:, None]
            limit_BK = jnp.where(overflows_B[:, None], self._sizes(self.lanes) - room(slots), held_BK)
            packed = self._packed(self._kept(self._by_head(), evidence, limit_BK), self.lanes)
            queries, sums = jax.lax.optimization_barrier((packed.pool.queries, packed.pool.sums))
            return PooledLayer(dataclasses.replace(packed.pool, queries=queries, sums=sums), self.lanes)

        layer = jax.lax.cond(overflows_B.any(), pruned, lambda: self)
        empty_B = slots - view.full[slots] + is_real_B  # before this token
        ends_BK = self._sizes(jnp.cumsum(self.lanes, axis=1))
        flat = _in_heads(layer.pool, 1)
        k_B1KH, v_B1KH = (x_BKTH.swapaxes(1, 2) for x_BKTH in (tokens.k_BKTH, tokens.v_BKTH))
        slots_BK = jnp.where(is_real_B[:, None], ends_BK - empty_B[:, None], flat.slots)
        flat = flat.written(k_B1KH, v_B1KH, jnp.broadcast_to(view.numbers_BT, ends_BK.shape), slots_BK)
        return self._attention(_in_heads(flat, layer.pool.index.shape[1]), tokens, view)

    def _attention(self, pool: PrunedLayer, tokens: NewTokens, view: "PrunedView") -> tuple[jax.Array, "PooledLayer"]:
        """softmax(q k^T) v of one token over all lanes of each head, and the layer with what its query tells."""
        q_BKGH, K = tokens.q_BKGTH[:, :, :, 0], self.lanes.shape[1]
        head_BV = self._head_of_lane()
        is_own_BVK = head_BV[..., None] == jnp.arange(K)

        def of_lanes(x_BK: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x_BK, head_BV.reshape(*head_BV.shape, *(1,) * (x_BK.ndim - 2)), axis=1)

        bias_BV1C = jnp.where(pool.visible(view), 0.0, -jnp.inf)
        scores_BVGC = pool.keys.scores(of_lanes(q_BKGH)) + bias_BV1C
        largest_BVKG = jnp.where(is_own_BVK[..., None], scores_BVGC.max(axis=-1)[:, :, None], -jnp.inf)
        weights_BVGC = jnp.exp(scores_BVGC - of_lanes(largest_BVKG.max(axis=1))[..., None])
        is_own_BVK = is_own_BVK.astype(jnp.float32)
        total_BKG = jnp.einsum("BVK,BVG->BKG", is_own_BVK, weights_BVGC.sum(axis=-1))
        sums_BVGH = pool.values.sums(weights_BVGC, q_BKGH.dtype)
        out_BKGH = jnp.einsum("BVK,BVGH->BKGH", is_own_BVK, sums_BVGH) / total_BKG[..., None]
        if pool.attention is not None:
            received_BVC = (weights_BVGC / of_lanes(total_BKG)[..., None]).mean(axis=2) * view.real_BT[:, :, None]
            pool = dataclasses.replace(pool, attention=pool.attention + received_BVC)
        out_BKGTH = out_BKGH[:, :, :, None].astype(q_BKGH.dtype)
        return out_BKGTH, PooledLayer(pool.with_queries(tokens, view), self.lanes)

    def _cut(self, layer: PrunedLayer, tokens: NewTokens, view: "PrunedView") -> "PooledLayer":
        """The pool of what is kept of a layer by heads; rows of more tokens than slots share their lanes out anew."""
        slots, new_B = self.slots, view.real_BT.sum(axis=1, dtype=jnp.int32)
        evidence = layer.evidence(tokens, view, view.lengths_B, view.query_index_BW)
        count_BK = (layer.index >= 0).sum(axis=2, dtype=jnp.int32)
        overflows_B1 = (view.full_before[slots] + new_B > slots)[:, None]
        scores_BKS = jnp.where(layer.index >= view.firsts_B[:, None, None], layer.policy.scores(evidence), 0)
        lanes_BK = jnp.where(overflows_B1, head_lanes(scores_BKS, count_BK, slots), self.lanes)
        limit_BK = jnp.where(overflows_B1, self._sizes(lanes_BK) - room(slots), count_BK)
        return self._packed(self._kept(layer, evidence, limit_BK), lanes_BK)

    def _kept(self, layer: PrunedLayer, evidence: Evidence, limit_BK: jax.Array) -> PrunedLayer:
        source_BKR = keep(
            layer.policy.scores(evidence),
            layer.index,
            first_B=evidence.first_B,
            length_B=evidence.length_B,
            slots=self.slots,
            window=layer.window,
            limit_BK=limit_BK,
            width=MOST_LANES * self.pool.slots,
        )
        return layer.gathered(source_BKR)

    def _by_head(self) -> PrunedLayer:
        """The slots of each head, one after another, in as many as a head may have."""
        place_R, sizes_BK = jnp.arange(MOST_LANES * self.pool.slots), self._sizes(self.lanes)
        starts_BK1 = (jnp.cumsum(sizes_BK, axis=1) - sizes_BK)[..., None]
        source_BKR = jnp.where(place_R < sizes_BK[..., None], starts_BK1 + place_R, -1)
        B, K, R = source_BKR.shape
        return _in_heads(_in_heads(self.pool, 1).gathered(source_BKR.reshape(B, 1, K * R)), K)

    def _packed(self, layer: PrunedLayer, lanes_BK: jax.Array) -> "PooledLayer":
        """The pool of a layer by heads, of which each has so many lanes."""
        (B, V), C = self.pool.index.shape[:2], self.pool.slots
        starts_BK = jnp.cumsum(lanes_BK, axis=1) - lanes_BK
        head_BV = _head_of_lane(lanes_BK, V)
        lane_of_head_BV = jnp.arange(V) - jnp.take_along_axis(starts_BK, head_BV, axis=1)
        source_BVC = (head_BV * layer.slots + lane_of_head_BV * C)[..., None] + jnp.arange(C)
        return PooledLayer(_in_heads(_in_heads(layer, 1).gathered(source_BVC.reshape(B, 1, V * C)), V), lanes_BK)

    def _sizes(self, lanes: jax.Array) -> jax.Array:
        """The slots in so many lanes."""
        return lanes * self.pool.slots

    def _head_of_lane(self) -> jax.Array:
        return _head_of_lane(self.lanes, self.pool.index.shape[1])


def _head_of_lane(lanes_BK: jax.Array, count: int) -> jax.Array:
    """The kv head of each lane: int32 [B, V]."""
    ends_BK = jnp.cumsum(lanes_BK, axis=1)
    return (jnp.arange(count)[:, None] >= ends_BK[:, None]).sum(axis=2, dtype=jnp.int32)


def _in_heads(layer: PrunedLayer, heads: int) -> PrunedLayer:
    """The layer with all its slots divided among so many heads, in their order."""

    def divided(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], heads, -1, *x.shape[3:])

    arrays = (layer.keys, layer.values, layer.index, layer.attention)
    keys, values, index, attention = jax.tree.map(divided, arrays)
    return dataclasses.replace(layer, keys=keys, values=values, index=index, attention=attention)

"""One layer of a pruned cache: its keys and values, and what its policy knows of them."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from stellarbyte.architecture import ByteConfig
from stellarbyte.kv_cache.evidence import WINDOW_QUERIES, Evidence, QueryMoments
from stellarbyte.kv_cache.policy import Policy
from stellarbyte.kv_cache.selection import keep
from stellarbyte_jax.model.attention.kernels import attention_to_slots
from stellarbyte_jax.model.attention.received import attention_received
from stellarbyte_jax.model.caches import NewTokens
from stellarbyte_jax.model.slots import Slots

if TYPE_CHECKING:
    from stellarbyte_jax.model.pruned_cache import PrunedView


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuerySums:
    """Sums over all queries of a row before they were turned; float32."""

    first_BKGH: jax.Array
    second_BKGHH: jax.Array  # of q q^T
    count_B: jax.Array

    def with_queries(self, q_BKGTH: jax.Array, real_BT: jax.Array) -> "QuerySums":
        """The sums with new queries, without those of padding."""
        q_BKGTH = q_BKGTH.astype(jnp.float32) * real_BT[:, None, None, :, None]
        return QuerySums(
            self.first_BKGH + q_BKGTH.sum(axis=3),
            self.second_BKGHH + jnp.einsum("BKGTH,BKGTI->BKGHI", q_BKGTH, q_BKGTH),
            self.count_B + real_BT.sum(axis=1),
        )

    def moments(self) -> QueryMoments:
        """The means; 0 where there is no query."""
        count_B111 = jnp.maximum(self.count_B, 1)[:, None, None, None]
        return QueryMoments(self.first_BKGH / count_B111, self.second_BKGHH / count_B111[..., None])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PrunedLayer:
    """Slots of one layer. Those of a head that are full come first, in the order of their tokens.

    index: the number of each slot's token in its row; -1: the slot is empty. attention, queries and sums are kept if
    the policy needs them: see Evidence.
    """

    keys: Slots
    values: Slots
    index: jax.Array  # int32 [B, K, C]
    attention: jax.Array | None  # float32 [B, K, C]
    queries: jax.Array | None  # float32 [B, K, G, W, H]
    sums: QuerySums | None
    policy: Policy = field(metadata={"static": True})
    window: int | None = field(metadata={"static": True})

    @staticmethod
    def create(config: ByteConfig, batch_size: int, slots: int, policy: Policy, dtype: DTypeLike) -> "PrunedLayer":
        """An empty layer with so many slots for each kv head."""
        B, K, H = batch_size, config.num_key_value_heads, config.head_dim
        assert K is not None and H is not None
        G = config.num_attention_heads // K
        attention = queries = sums = None
        if "attention" in policy.needs:
            attention = jnp.zeros((B, K, slots), jnp.float32)
        if "queries" in policy.needs:
            queries = jnp.zeros((B, K, G, WINDOW_QUERIES, H), jnp.float32)
        if "query_moments" in policy.needs:
            first, second = jnp.zeros((B, K, G, H), jnp.float32), jnp.zeros((B, K, G, H, H), jnp.float32)
            sums = QuerySums(first, second, jnp.zeros((B,), jnp.int32))
        return PrunedLayer(
            keys=Slots.create((B, K, slots, H), dtype),
            values=Slots.create((B, K, slots, H), dtype),
            index=jnp.full((B, K, slots), -1, jnp.int32),
            attention=attention,
            queries=queries,
            sums=sums,
            policy=policy,
            window=config.sliding_window,
        )

    @property
    def slots(self) -> int:
        """C, the slots of each kv head."""
        return self.index.shape[2]

    def take(self, tokens: NewTokens, view: "PrunedView") -> "PrunedLayer":
        """The layer with the tokens of a first call, of which it keeps as many as it has slots."""
        slots, T = self.slots, tokens.k_BKTH.shape[2]
        full_B = view.full_before[slots]
        layer = self.grown(max(0, T - slots)).stored(tokens, view, full_B).observed(tokens, view)
        return layer._pruned(slots, tokens, view) if slots < T else layer

    def attend(self, tokens: NewTokens, view: "PrunedView") -> tuple[jax.Array, "PrunedLayer"]:
        """The attention of the new tokens, [B, K, G, T, H], and the layer with them, within its slots."""
        slots, T = self.slots, tokens.k_BKTH.shape[2]
        full_B, new_B = view.full_before[slots], view.real_BT.sum(axis=1, dtype=jnp.int32)
        overflows = (full_B + new_B > slots).any()
        if T == 1:
            layer = jax.lax.cond(overflows, lambda: self._with_room(tokens, view, new_B), lambda: self)
            return layer.attend_in_slots(tokens, view, view.full[slots] - new_B)

        def overflow() -> tuple[jax.Array, PrunedLayer]:
            out_BKGTH, layer = self.grown(T).attend_in_slots(tokens, view, full_B)
            return out_BKGTH, layer._pruned(slots, tokens, view)

        return jax.lax.cond(overflows, overflow, lambda: self.attend_in_slots(tokens, view, full_B))

    def reset(self, rows_B: jax.Array) -> "PrunedLayer":
        """The layer with the rows emptied where `rows_B` is true."""

        def emptied(x: jax.Array, empty: int) -> jax.Array:
            return jnp.where(rows_B.reshape(-1, *(1,) * (x.ndim - 1)), empty, x)

        known = jax.tree.map(lambda x: emptied(x, 0), (self.attention, self.queries, self.sums))
        attention, queries, sums = known
        index = emptied(self.index, -1)
        return dataclasses.replace(self, index=index, attention=attention, queries=queries, sums=sums)

    def grown(self, more: int) -> "PrunedLayer":
        """The layer with so many more slots."""
        if more == 0:
            return self
        behind = ((0, 0), (0, 0), (0, more))
        return dataclasses.replace(
            self,
            keys=self.keys.grown(more),
            values=self.values.grown(more),
            index=jnp.pad(self.index, behind, constant_values=-1),
            attention=None if self.attention is None else jnp.pad(self.attention, behind),
        )

    def _with_room(self, tokens: NewTokens, view: "PrunedView", coming_B: jax.Array) -> "PrunedLayer":
        """The layer after its full rows are pruned for the one token, or none, that each gets."""
        evidence = self.evidence(tokens, view, view.before_B, view.earlier_query_index_BW)
        layer = self._kept(self.slots, evidence, coming_B)
        # As a result of both branches they need no copy; what is the same in both, JAX would hand around them.
        queries, sums = jax.lax.optimization_barrier((layer.queries, layer.sums))
        return dataclasses.replace(layer, queries=queries, sums=sums)

    def _pruned(self, slots: int, tokens: NewTokens, view: "PrunedView") -> "PrunedLayer":
        """The layer with so many slots."""
        return self._kept(slots, self.evidence(tokens, view, view.lengths_B, view.query_index_BW), None)

    def _kept(self, slots: int, evidence: Evidence, coming_B: jax.Array | None) -> "PrunedLayer":
        source_BKC = keep(
            self.policy.scores(evidence),
            self.index,
            first_B=evidence.first_B,
            length_B=evidence.length_B,
            slots=slots,
            window=self.window,
            coming_B=coming_B,
        )

        return self.gathered(source_BKC)

    def gathered(self, source_BKC: jax.Array) -> "PrunedLayer":
        """The layer with what these slots of each head held; a slot of which this is negative is empty."""

        def gathered(x_BKS: jax.Array, empty: int) -> jax.Array:
            taken_BKC = jnp.take_along_axis(x_BKS, jnp.maximum(source_BKC, 0), axis=2, mode="clip")
            return jnp.where(source_BKC >= 0, taken_BKC, empty)

        return dataclasses.replace(
            self,
            keys=self.keys.gathered(source_BKC),
            values=self.values.gathered(source_BKC),
            index=gathered(self.index, -1),
            attention=None if self.attention is None else gathered(self.attention, 0),
        )

    def evidence(
        self, tokens: NewTokens, view: "PrunedView", length_B: jax.Array, query_index_BW: jax.Array
    ) -> Evidence:
        """What the policy may know, when rows have so many tokens and remember queries of these numbers."""
        assert tokens.position_ids_BT is not None
        position_ids_BT = jnp.broadcast_to(tokens.position_ids_BT, view.numbers_BT.shape)
        offset_BT = (position_ids_BT - view.numbers_BT).astype(jnp.int32)
        return Evidence(
            keys_BKSH=self.keys.read(jnp.float32),
            values_BKSH=self.values.read(jnp.float32),
            index_BKS=self.index,
            first_B=view.firsts_B,
            length_B=length_B,
            offset_B=jnp.take_along_axis(offset_BT, view.last_B[:, None], axis=1)[:, 0],
            window=self.window,
            rotation=tokens.rotation,
            attention_BKS=self.attention,
            queries_BKGWH=self.queries,
            query_index_BW=query_index_BW,
            moments=None if self.sums is None else self.sums.moments(),
        )

    def attend_in_slots(
        self, tokens: NewTokens, view: "PrunedView", full_B: jax.Array
    ) -> tuple[jax.Array, "PrunedLayer"]:
        """The attention of new tokens that there are slots for, and the layer with them behind the full slots."""
        layer, (G, T) = self.stored(tokens, view, full_B), tokens.q_BKGTH.shape[2:4]
        out_BKGTH, weights_BKGTC = attention_to_slots(tokens.q_BKGTH, layer.keys, layer.values, layer.visible(view))
        if layer.attention is None or T > 1:
            return out_BKGTH, layer.observed(tokens, view)
        # One token's weights are at hand; those of several would be as many as a prompt's tokens squared.
        received_BKC = sum(weights_BKGTC[:, :, g, 0] for g in range(G)) * view.real_BT[:, None] / G
        layer = dataclasses.replace(layer, attention=layer.attention + received_BKC)
        return out_BKGTH, layer.with_queries(tokens, view)

    def visible(self, view: "PrunedView") -> jax.Array:
        """Whether each new token sees what each slot holds: bool [B, K, T, C]."""
        index_BK1S, numbers_B1T1 = self.index[:, :, None], view.numbers_BT[:, None, :, None]
        visible_BKTS = (index_BK1S <= numbers_B1T1) & (index_BK1S >= view.starts_BT[:, None, :, None])
        visible_BKTS &= index_BK1S >= 0
        if self.window is not None:
            visible_BKTS &= index_BK1S > numbers_B1T1 - self.window
        return visible_BKTS | ~view.real_BT[:, None, :, None]  # padding, which is not stored, would see nothing

    def stored(self, tokens: NewTokens, view: "PrunedView", full_B: jax.Array) -> "PrunedLayer":
        """The layer with the new tokens behind the `full_B` that it has; padding goes nowhere."""
        rank_BT = jnp.cumsum(view.real_BT, axis=1, dtype=jnp.int32) - 1
        slots_BT = jnp.where(view.real_BT, full_B[:, None] + rank_BT, self.slots)
        return self.written(tokens.k_BKTH, tokens.v_BKTH, view.numbers_BT, slots_BT)

    def written(
        self, k_BKTH: jax.Array, v_BKTH: jax.Array, numbers_BT: jax.Array, slots_BT: jax.Array
    ) -> "PrunedLayer":
        """The layer with tokens of these numbers in these slots; one beyond the last stores nothing."""
        rows_B1 = jnp.arange(slots_BT.shape[0])[:, None]
        return dataclasses.replace(
            self,
            keys=self.keys.write(k_BKTH, slots_BT),
            values=self.values.write(v_BKTH, slots_BT),
            index=self.index.at[rows_B1, :, slots_BT].set(numbers_BT[..., None], mode="drop"),
        )

    def observed(self, tokens: NewTokens, view: "PrunedView") -> "PrunedLayer":
        """The layer, which has stored the new tokens, with what their queries tell."""
        attention = self.attention
        if attention is not None:
            attention = attention + attention_received(
                tokens.q_BKGTH,
                self.keys,
                self.index,
                starts_BT=view.starts_BT,
                numbers_BT=view.numbers_BT,
                real_BT=view.real_BT,
                window=self.window,
            )
        return dataclasses.replace(self, attention=attention).with_queries(tokens, view)

    def with_queries(self, tokens: NewTokens, view: "PrunedView") -> "PrunedLayer":
        """The layer with what the policy has to know of the queries themselves."""
        queries, sums = self.queries, self.sums
        if queries is not None:
            rows_B1 = jnp.arange(view.real_BT.shape[0])[:, None]
            q_BTKGH = tokens.q_BKGTH.transpose(0, 3, 1, 2, 4).astype(jnp.float32)
            queries = queries.at[rows_B1, :, :, view.query_slots_BT].set(q_BTKGH, mode="drop")
        if sums is not None:
            sums = sums.with_queries(tokens.unturned_BKGTH, view.real_BT)
        return dataclasses.replace(self, queries=queries, sums=sums)

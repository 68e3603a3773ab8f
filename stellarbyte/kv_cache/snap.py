"""Keeps what the newest queries attend to, with its neighbours (SnapKV: Li et al. 2024, arXiv:2404.14469)."""

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from stellarbyte.kv_cache.evidence import Array, Evidence

# Each key scores as the best of this many neighbours, itself in the middle: what stands around a find is kept with it.
_NEIGHBOURS = 7


@dataclass(frozen=True)
class Snap:
    """Scores by the attention of the newest queries."""

    name: ClassVar[str] = "snap"
    needs: ClassVar[frozenset[str]] = frozenset({"queries"})

    def scores(self, evidence: Evidence) -> Array:
        """The attention of the newest queries, summed over them and pooled: float32 [B, K, S]."""
        xp = array_namespace(evidence.keys_BKSH)
        assert evidence.queries_BKGWH is not None and evidence.query_index_BW is not None
        B, K, G, W, H = evidence.queries_BKGWH.shape
        keys_BKHS = xp.matrix_transpose(evidence.keys_BKSH)
        products = xp.matmul(xp.reshape(evidence.queries_BKGWH, (B, K, G * W, H)), keys_BKHS)
        products_BKGWS = xp.reshape(products, (B, K, G, W, -1))

        key_BK1S, query_B1W1 = evidence.index_BKS[:, :, None, :], evidence.query_index_BW[:, None, :, None]
        visible_BKWS = (key_BK1S <= query_B1W1) & (key_BK1S >= evidence.first_B[:, None, None, None])
        if evidence.window is not None:
            visible_BKWS = visible_BKWS & (key_BK1S > query_B1W1 - evidence.window)
        visible_BK1WS = visible_BKWS[:, :, None]
        # No product is as low as this, and the difference of two such is still a number.
        products_BKGWS = xp.where(visible_BK1WS, products_BKGWS, xp.asarray(-1e38, dtype=xp.float32))
        largest = xp.max(products_BKGWS, axis=-1, keepdims=True)
        weights_BKGWS = xp.where(visible_BK1WS, xp.exp(products_BKGWS - largest), xp.asarray(0.0, dtype=xp.float32))
        total = xp.sum(weights_BKGWS, axis=-1, keepdims=True)
        weights_BKGWS = weights_BKGWS / xp.where(total > 0, total, xp.asarray(1.0, dtype=xp.float32))
        return _pooled(xp.sum(xp.mean(weights_BKGWS, axis=2), axis=2))


def _pooled(scores_BKS: Array) -> Array:
    """The largest score among each key's neighbours in the order of their tokens; scores are at least 0."""
    xp = array_namespace(scores_BKS)
    (B, K, S), side = scores_BKS.shape, _NEIGHBOURS // 2
    zeros = xp.zeros_like(scores_BKS[:, :, :1])
    edge = xp.broadcast_to(zeros, (B, K, side))
    padded = xp.concat([edge, scores_BKS, edge], axis=-1)
    return xp.max(xp.stack([padded[:, :, start : start + S] for start in range(_NEIGHBOURS)]), axis=0)

"""Keeps what the newest queries attend to, with its neighbours (SnapKV: Li et al. 2024, arXiv:2404.14469)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from stellarbyte.kv_cache.evidence import Array, Evidence

# Each key scores as the best of itself, so many before it and so many after it: what follows a find is read next.
_BEFORE, _AFTER = 11, 3
# A query counts half as much as one that is so much newer: what was looked for last is being read.
_HALF_LIFE = 4


@dataclass(frozen=True)
class Snap:
    """Scores by the attention of the newest queries, the newest ones most.

    The paper counts all queries alike and pools over 7 keys around each, which loses a line that is being read on
    (docs/measured.md).
    """

    name: ClassVar[str] = "snap"
    needs: ClassVar[frozenset[str]] = frozenset({"queries"})

    def scores(self, evidence: Evidence) -> Array:
        """The attention of the newest queries, summed by their age and pooled: float32 [B, K, S]."""
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
        hidden, lowest = (xp.asarray(value, dtype=xp.float32) for value in (-math.inf, -1e38))
        products_BKGWS = xp.where(visible_BKWS[:, :, None], products_BKGWS, hidden)
        # No product is as low as this: a query that sees no key gives none any weight.
        largest_BKGW1 = xp.maximum(xp.max(products_BKGWS, axis=-1, keepdims=True), lowest)
        weights_BKGWS = xp.exp(products_BKGWS - largest_BKGW1)
        total_BKGW = xp.sum(weights_BKGWS, axis=-1)
        newest_B1 = xp.max(evidence.query_index_BW, axis=1, keepdims=True)
        age_BW = xp.astype(newest_B1 - evidence.query_index_BW, xp.float32)
        counts_B11W = xp.exp(age_BW * (-math.log(2) / _HALF_LIFE))[:, None, None]
        shares_BKGW = counts_B11W / (G * xp.where(total_BKGW > 0, total_BKGW, xp.ones_like(total_BKGW)))
        scores_BK1S = xp.matmul(xp.reshape(shares_BKGW, (B, K, 1, G * W)), xp.reshape(weights_BKGWS, (B, K, G * W, -1)))
        return _pooled(scores_BK1S[:, :, 0])


def _pooled(scores_BKS: Array) -> Array:
    """The largest score of each key and its neighbours in the order of their tokens; scores are at least 0."""
    xp = array_namespace(scores_BKS)
    B, K, S = scores_BKS.shape
    zeros_BK1 = xp.zeros_like(scores_BKS[:, :, :1])
    before, after = (xp.broadcast_to(zeros_BK1, (B, K, count)) for count in (_BEFORE, _AFTER))
    padded = xp.concat([before, scores_BKS, after], axis=-1)
    starts = range(_BEFORE + _AFTER + 1)
    return xp.max(xp.stack([padded[:, :, start : start + S] for start in starts]), axis=0)

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
        visible_BK1WS = visible_BKWS[:, :, None]
        # No product is as low as this, and the difference of two such is still a number.
        products_BKGWS = xp.where(visible_BK1WS, products_BKGWS, xp.asarray(-1e38, dtype=xp.float32))
        largest = xp.max(products_BKGWS, axis=-1, keepdims=True)
        weights_BKGWS = xp.where(visible_BK1WS, xp.exp(products_BKGWS - largest), xp.asarray(0.0, dtype=xp.float32))
        total = xp.sum(weights_BKGWS, axis=-1, keepdims=True)
        weights_BKGWS = weights_BKGWS / xp.where(total > 0, total, xp.asarray(1.0, dtype=xp.float32))
        newest_B1 = xp.max(evidence.query_index_BW, axis=1, keepdims=True)
        age_BW = xp.astype(newest_B1 - evidence.query_index_BW, xp.float32)
        counts_B1W1 = xp.exp(age_BW * (-math.log(2) / _HALF_LIFE))[:, None, :, None]
        return _pooled(xp.sum(xp.mean(weights_BKGWS, axis=2) * counts_B1W1, axis=2))


def _pooled(scores_BKS: Array) -> Array:
    """The largest score of each key and its neighbours in the order of their tokens; scores are at least 0."""
    xp = array_namespace(scores_BKS)
    B, K, S = scores_BKS.shape
    zeros_BK1 = xp.zeros_like(scores_BKS[:, :, :1])
    before, after = (xp.broadcast_to(zeros_BK1, (B, K, count)) for count in (_BEFORE, _AFTER))
    padded = xp.concat([before, scores_BKS, after], axis=-1)
    starts = range(_BEFORE + _AFTER + 1)
    return xp.max(xp.stack([padded[:, :, start : start + S] for start in starts]), axis=0)

"""Keeps the keys that later queries can be expected to attend to (Devoto et al. 2025, arXiv:2510.00636)."""

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from stellarbyte.kv_cache.evidence import Array, Evidence

# Expectations are over the queries of so many positions to come, of which each eighth is looked at.
_FUTURE, _STEP = 512, 8


@dataclass(frozen=True)
class Expected:
    """Scores by E[exp(q · k)] for queries q ~ N(mu, Sigma), turned to positions to come, times the value's norm.

    A turned query is A q, where A is the mean over these positions of the rotations with XPos's factors. So the
    expectation is exp(A mu · k + k^T A Sigma A^T k / 2), made a share of the sum over all keys for each query head.
    """

    name: ClassVar[str] = "expected"
    needs: ClassVar[frozenset[str]] = frozenset({"query_moments"})

    def scores(self, evidence: Evidence) -> Array:
        """The expected attention, the mean over query heads, times the value's norm: float32 [B, K, S]."""
        xp = array_namespace(evidence.keys_BKSH)
        assert evidence.moments is not None
        mean_BKGH, second_BKGHH = evidence.moments.mean_BKGH, evidence.moments.second_BKGHH
        covariance_BKGHH = second_BKGHH - mean_BKGH[..., :, None] * mean_BKGH[..., None, :]
        if evidence.rotation is not None:
            next_B1 = (evidence.length_B + evidence.offset_B)[:, None]
            ones = xp.broadcast_to(xp.ones_like(next_B1), (next_B1.shape[0], _FUTURE // _STEP))
            rotation = evidence.rotation(next_B1 + (xp.cumulative_sum(ones, axis=1) - 1) * _STEP)
            cos_BH, sin_BH = (xp.mean(table * rotation.query_factor, axis=1) for table in (rotation.cos, rotation.sin))
            cos, sin = (x[:, None, None] for x in (cos_BH, sin_BH))
            mean_BKGH = _turned(mean_BKGH, cos, sin)
            covariance_BKGHH = _turned(covariance_BKGHH, cos[..., None, :], sin[..., None, :])
            covariance_BKGHH = _turned(xp.matrix_transpose(covariance_BKGHH), cos[..., None, :], sin[..., None, :])

        # mu · k + k^T Sigma k / 2 is (mu + Sigma k / 2) · k.
        def exponent_BKS(group: int) -> Array:
            halves_BKSH = xp.matmul(evidence.keys_BKSH, covariance_BKGHH[:, :, group] / 2)
            return xp.sum((halves_BKSH + mean_BKGH[:, :, group, None]) * evidence.keys_BKSH, axis=-1)

        exponent_BKGS = xp.stack([exponent_BKS(group) for group in range(mean_BKGH.shape[2])], axis=2)
        oldest_B = evidence.first_B
        if evidence.window is not None:
            oldest_B = xp.maximum(oldest_B, evidence.length_B - evidence.window + 1)
        visible_BK1S = (evidence.index_BKS >= oldest_B[:, None, None])[:, :, None]
        exponent_BKGS = xp.where(visible_BK1S, exponent_BKGS, xp.asarray(-1e38, dtype=xp.float32))
        weights_BKGS = xp.exp(exponent_BKGS - xp.max(exponent_BKGS, axis=-1, keepdims=True))
        weights_BKGS = weights_BKGS / xp.sum(weights_BKGS, axis=-1, keepdims=True)
        norms_BKS = xp.sqrt(xp.sum(evidence.values_BKSH * evidence.values_BKSH, axis=-1))
        return xp.mean(weights_BKGS, axis=2) * norms_BKS


def _turned(x: Array, cos: Array, sin: Array) -> Array:
    """The pairs (x_i, x_{i + H / 2}) of the last axis, turned."""
    xp = array_namespace(x)
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return xp.concat([first * cos - second * sin, second * cos + first * sin], axis=-1)

"""Scores against the plain formula, written out for one head at a time, or against drawn queries."""

import numpy as np
import pytest

from stellarbyte.kv_cache.registry import POLICIES, policy
from test_stellarbyte.test_kv_cache.evidences import B, G, H, K, S, W, evidence, rotation


@pytest.mark.parametrize("window", [None, 9])
def test_snap_is_the_attention_of_the_newest_queries(window: int | None) -> None:
    given = evidence(window=window, first_B=np.array([0, 3], np.int32))
    scores = policy("snap").scores(given)
    for b, k in np.ndindex(B, K):
        summed = np.zeros(S)
        for g, w in np.ndindex(G, W):
            last = S - W + w
            first = max(3 * b, 0 if window is None else last - window + 1)
            products = np.exp(given.keys_BKSH[b, k, first : last + 1] @ given.queries_BKGWH[b, k, g, w])
            summed[first : last + 1] += products / products.sum() / G * 2 ** (-(W - 1 - w) / 4)
        pooled = [summed[max(0, s - 11) : s + 4].max() for s in range(S)]
        np.testing.assert_allclose(scores[b, k], pooled, rtol=1e-5, atol=1e-7)


def test_snap_leaves_out_queries_that_there_are_not() -> None:
    given = evidence(query_index_BW=np.full((B, W), -1, np.int32))
    assert not policy("snap").scores(given).any()


def test_expected_is_the_mean_over_queries_to_come() -> None:
    """Thirty thousand queries by the formula's own assumptions: normal, and turned by the mean rotation."""
    given = evidence(rotation=rotation)
    scores = policy("expected").scores(given)
    rng = np.random.default_rng(1)
    ahead = rotation(S + np.arange(0, 512, 8))
    for b, k in [(0, 1), (1, 0)]:
        expected = np.zeros(S)
        for g in range(G):
            mean = given.moments.mean_BKGH[b, k, g].astype(np.float64)
            covariance = given.moments.second_BKGHH[b, k, g] - np.outer(mean, mean)
            queries = rng.multivariate_normal(mean, covariance, 30_000, method="cholesky")
            one, other = np.split(queries[:, None], 2, axis=-1)
            cos, sin = ahead.cos * ahead.query_factor, ahead.sin * ahead.query_factor
            cos, sin = cos.mean(axis=0), sin.mean(axis=0)
            turned = np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)[:, 0]
            weights = np.exp(turned @ given.keys_BKSH[b, k].T).mean(axis=0)
            expected += weights / weights.sum() / G
        expected *= np.linalg.norm(given.values_BKSH[b, k], axis=-1)
        np.testing.assert_allclose(scores[b, k], expected, rtol=0.05)


def test_norm_divides_xpos_factor_out() -> None:
    """Keys of one length turned to positions far apart are equally important."""
    rng = np.random.default_rng(0)
    keys = rng.normal(size=(1, 1, S, H)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    turn = rotation(np.arange(S) + 100)
    one, other = np.split(keys, 2, axis=-1)
    final = np.concatenate([one * turn.cos - other * turn.sin, other * turn.cos + one * turn.sin], axis=-1)
    final *= np.concatenate([turn.key_factor, turn.key_factor], axis=-1)
    assert np.linalg.norm(final, axis=-1).max() > 1.5
    given = evidence(
        keys_BKSH=final,
        index_BKS=np.arange(S, dtype=np.int32)[None, None],
        offset_B=np.array([100], np.int32),
        rotation=rotation,
    )
    np.testing.assert_allclose(policy("norm").scores(given), -1, rtol=1e-5)


def test_every_policy_scores_every_key() -> None:
    for name in POLICIES:
        scores = policy(name).scores(evidence(rotation=rotation, window=9))
        assert scores.shape == (B, K, S)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()

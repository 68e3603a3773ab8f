"""Evidence made up of random numbers, for tests of policies."""

from typing import Any

import numpy as np

from stellarbyte.kv_cache.evidence import Evidence, QueryMoments, Rotation

B, K, G, S, H, W = 2, 2, 3, 24, 8, 5
FREQUENCIES, LOG_ZETA = np.float32([1.0, 0.5, 0.1, 0.01]), np.log(np.float32([0.3, 0.5, 0.7, 0.9]))


def rotation(positions: np.ndarray) -> Rotation:
    positions = positions.astype(np.float32)
    angles = positions[..., None] * FREQUENCIES
    factor = np.exp(positions[..., None] / np.float32(64) * LOG_ZETA)
    return Rotation(np.cos(angles), np.sin(angles), factor, 1 / factor)


def evidence(**others: Any) -> Evidence:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    mean = normal(B, K, G, H) / 3
    spread = normal(B, K, G, H, H) / 10
    second = mean[..., :, None] * mean[..., None, :] + spread @ np.swapaxes(spread, -1, -2)
    fields = {
        "keys_BKSH": normal(B, K, S, H),
        "values_BKSH": normal(B, K, S, H),
        "index_BKS": np.broadcast_to(np.arange(S, dtype=np.int32), (B, K, S)),
        "first_B": np.zeros(B, np.int32),
        "length_B": np.full(B, S, np.int32),
        "offset_B": np.zeros(B, np.int32),
        "queries_BKGWH": normal(B, K, G, W, H),
        "query_index_BW": np.broadcast_to(np.arange(S - W, S, dtype=np.int32), (B, W)),
        "moments": QueryMoments(mean, second),
        "attention_BKS": np.abs(normal(B, K, S)),
    }
    return Evidence(**(fields | others))

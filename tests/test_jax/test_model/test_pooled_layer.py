"""A pruned cache whose heads share a layer's slots: the laws of the others, and a fair share."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.kv_cache.budgets import FEWEST_LANES, LANES, MOST_LANES
from stellarbyte.kv_cache.evidence import Evidence
from stellarbyte.kv_cache.registry import policy
from stellarbyte.kv_cache.selection import SINKS, recent, room
from stellarbyte.kv_cache.snap import Snap
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.pruned_cache import PrunedCache
from test_jax.test_model.test_pruned_cache import XPOS, B, read
from test_jax.tiny import random_tokens, relative_error, tiny_config
from tiers import short_tier

SLOTS, PIECES = 16, [40, *[1] * 20, 10]
T = sum(PIECES)
CONFIGS = {
    "xpos": XPOS,
    "rope, window": tiny_config(num_hidden_layers=1, position_embedding="rope", sliding_window=24),
}
every_policy = pytest.mark.parametrize("name", short_tier(["uneven", "snap", "heavy", "expected"], 1))


@dataclass(frozen=True)
class Uneven(Snap):
    """The last head looks at one token, the others everywhere."""

    name: ClassVar[str] = "uneven"

    def scores(self, evidence: Evidence) -> Any:
        here = jnp.ones_like(evidence.index_BKS, jnp.float32)
        return here.at[:, -1].set(evidence.index_BKS[:, -1] == 5)


def pooled(name: str, slots: int = SLOTS, config: Any = XPOS) -> PrunedCache:
    chosen = Uneven() if name == "uneven" else policy(name)
    return PrunedCache.create(config, B, (slots,) * config.num_hidden_layers, chosen, shared=True)


@pytest.mark.parametrize(("config", "name"), short_tier([(c, n) for c in CONFIGS for n in ("snap", "heavy")], 1))
def test_with_room_for_all_nothing_is_lost(config: str, name: str) -> None:
    config, slots = CONFIGS[config], -(-T // LANES) * LANES
    ids = random_tokens(config, B, T)
    full, _ = read(config, KVCache.create(config, B, T, slack=T), PIECES, ids)
    logits, cache = read(config, pooled(name, slots, config), PIECES, ids)
    assert relative_error(logits, full) < 1e-5
    assert np.array_equal(cache.layers[0].index[..., :T], np.broadcast_to(np.arange(T), (B, 2, T)))
    if name == "heavy":
        np.testing.assert_allclose(cache.layers[0].pool.attention.sum(axis=(1, 2)), 2 * T, rtol=1e-5)


@every_policy
def test_heads_share_what_there_is(name: str) -> None:
    ids, cache, length = random_tokens(XPOS, B, T), pooled(name), 0
    shapes = jax.tree.map(jnp.shape, cache.layers)
    for size in PIECES:
        now = slice(length, length + size)
        positions = np.broadcast_to(np.arange(T, dtype=np.int32)[now], (B, size))
        _, cache = read(XPOS, cache, [size], ids[:, now], positions)
        length += size
        (layer,) = cache.layers
        assert jax.tree.map(jnp.shape, cache.layers) == shapes
        assert (layer.lanes.sum(axis=1) == LANES * layer.lanes.shape[1]).all()
        assert layer.lanes.min() >= FEWEST_LANES
        assert layer.lanes.max() <= MOST_LANES
        counts_BK = (np.asarray(layer.index) >= 0).sum(axis=-1)
        empty_BK = layer.lanes * (SLOTS // LANES) - counts_BK
        assert (empty_BK == empty_BK[:, :1]).all()
        assert 0 <= empty_BK.min() <= empty_BK.max() <= room(SLOTS)
        for head in np.asarray(layer.index).reshape(-1, layer.index.shape[-1]):
            assert {*range(SINKS), *range(length - recent(SLOTS), length)} <= set(head)
            assert (np.diff(head[head >= 0]) > 0).all()
    assert name != "uneven" or (layer.lanes[:, -1] == FEWEST_LANES).all()


@every_policy
def test_rows_and_positions_do_not_matter(name: str) -> None:
    ids, others = random_tokens(XPOS, B, T), random_tokens(XPOS, B, T, seed=1)
    positions = np.broadcast_to(np.arange(10_000, 10_000 + T, dtype=np.int32), (B, T))
    logits, cache = read(XPOS, pooled(name), PIECES, ids)
    beside, again = read(XPOS, pooled(name), PIECES, np.stack([others[0], ids[1]]))
    _, shifted = read(XPOS, pooled(name), PIECES, ids, positions)
    assert np.array_equal(logits[1], beside[1])
    assert np.array_equal(cache.layers[0].index[1], again.layers[0].index[1])
    assert np.array_equal(cache.layers[0].index, shifted.layers[0].index)


def test_a_row_that_is_reset_starts_anew() -> None:
    _, cache = read(XPOS, pooled("heavy"), PIECES, random_tokens(XPOS, B, T))
    ids, places = random_tokens(XPOS, B, T, seed=1), np.arange(T, dtype=np.int32)
    one = cache.reset(jnp.array([True, False]))
    _, again = read(XPOS, one, [1] * 20, ids[:, :20], np.stack([places[:20], places[:20] + T]))
    _, anew = read(XPOS, cache.reset(jnp.array([True, True])), [1] * 20, ids[:, :20])
    assert np.array_equal(again.layers[0].index[0], anew.layers[0].index[0])
    assert (again.layers[0].lanes[0] == LANES).all()


def test_heads_that_nobody_reads_are_refused() -> None:
    with pytest.raises(UserError, match=r"kv head 1 of layer 1 has lost all that read it \(model.pruned_heads\)"):
        pooled("snap", config=tiny_config(pruned_heads=((0,), (2, 3))))

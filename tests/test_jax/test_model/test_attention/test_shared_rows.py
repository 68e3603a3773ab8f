"""Who works on which queries: every one once, and as many blocks for each device."""

import jax
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from stellarbyte_jax.config import MeshConfig
from stellarbyte_jax.model.attention.shared_rows import CausalRows, SharedRows
from stellarbyte_jax.sharding import Layout, make_mesh


@pytest.mark.parametrize("shards", [2, 4, 8])
def test_tokens_travel_to_their_places_and_back(shards: int) -> None:
    layout, T = Layout(make_mesh(MeshConfig(data=1, context=shards), jax.devices()[:shards])), 6 * shards
    shared = SharedRows.of(layout, T, None, multiple=3)
    assert shared.balanced
    row = layout.spec("length")
    taken = layout.map(lambda x: shared.take(x, 0), row, row)(np.arange(T, dtype=np.int32))
    assert np.array_equal(taken, shared.positions(T))
    back = layout.map(lambda x: shared.put(x, 0), row, row)(taken)
    assert np.array_equal(back, np.arange(T))


@pytest.mark.parametrize("shards", [2, 4, 16])
def test_work_is_the_same_for_all(shards: int) -> None:
    T = 64 * shards
    positions = SharedRows(("context",), shards, balanced=True).positions(T)
    assert sorted(positions) == list(range(T))
    keys_seen = (positions + 1).reshape(shards, -1).sum(axis=1)
    assert len(set(keys_seen)) == 1


def test_in_order_where_there_is_nothing_to_balance() -> None:
    layout = Layout(make_mesh(MeshConfig(data=1, context=2), jax.devices()[:2]))
    assert not SharedRows.of(Layout(), 1024, None, 128).balanced
    assert not SharedRows.of(layout, 1024, 100, 128).balanced  # a window gives all the same
    assert not SharedRows.of(layout, 256, None, 128).balanced  # 64 tokens are no tile
    assert SharedRows.of(layout, 512, None, 128).balanced


@pytest.mark.parametrize("window", [None, 1, 5, 16])
def test_the_mask_is_splashs_own(window: int | None) -> None:
    """Block by block, those told by their borders too; for rows in order and out of it."""
    T, block = 48, 8
    whole = masks.CausalMask((T, T)) if window is None else masks.LocalMask((T, T), (window - 1, 0), 0)
    for positions in (np.arange(T, dtype=np.int32), SharedRows(("context",), 3, balanced=True).positions(T)):
        ours, seen = CausalRows(positions, window), whole[:, :][positions]
        shortcuts = 0
        for row in range(0, T, block):
            for column in range(0, T, block):
                index = slice(row, row + block), slice(column, column + block)
                found = ours[index]
                shortcuts += found.size == 1
                assert np.array_equal(np.broadcast_to(found, (block, block)), seen[index])
        assert shortcuts > 10

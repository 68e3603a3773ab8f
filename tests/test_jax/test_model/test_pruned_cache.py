"""The laws of a cache within a budget: nothing is lost where all fits, and what is lost depends on nothing else.

Most tests read the same shapes, so that few programs are compiled.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.architecture import RopeScaling
from stellarbyte.kv_cache.registry import POLICIES, policy
from stellarbyte.kv_cache.selection import SINKS, recent, room
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.pruned_cache import PrunedCache
from test_jax.test_model.test_kv_cache import scratch, used
from test_jax.tiny import random_tokens, relative_error, tiny_config, tiny_model
from tiers import short_tier

B, SLOTS, PIECE = 2, 16, 10
PIECES = [PIECE, *[1] * 20, PIECE]
T = sum(PIECES)

# Bases so large that no factor of XPos leaves float32 at position 10,000.
XPOS = tiny_config(num_hidden_layers=1, xpos_scale_base=4096.0)
CONFIGS = {
    "xpos": XPOS,
    "rope": tiny_config(
        num_hidden_layers=1, position_embedding="rope", rope_scaling=RopeScaling("yarn", 2.0), qk_norm=True
    ),
    "no positions, experts": tiny_config(position_embedding="none", num_hidden_layers=1, num_experts=4),
    "learnable xpos, window": tiny_config(
        num_hidden_layers=1, xpos_learnable=True, sliding_window=24, num_key_value_heads=1
    ),
    "pruned heads": tiny_config(pruned_heads=((0, 1), (2,))),
}
# Each policy is programs of its own. In the short tier are those for which a cache collects something.
every_policy = pytest.mark.parametrize("name", short_tier(list(POLICIES), 1, 2))


@functools.cache
def reader(config: ByteConfig) -> Any:
    """(input ids, position ids, segment ids, cache) -> (logits, cache); one program for each number of tokens."""
    graphdef, state = nnx.split(tiny_model(config).unstack())

    @jax.jit
    def read(state, input_ids, position_ids, segment_ids, cache):
        output = nnx.merge(graphdef, state)(input_ids, position_ids, segment_ids, cache)
        return output.logits, output.cache

    return functools.partial(read, state)


def read(
    config: ByteConfig,
    cache: Any,
    pieces: list[int],
    ids: np.ndarray,
    positions: np.ndarray | None = None,
    segment_ids: np.ndarray | None = None,
) -> tuple[np.ndarray, Any]:
    """Logits of a text read in pieces, and the cache after it; by default rows are one text from position 0 on."""
    positions = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape) if positions is None else positions
    segment_ids = np.ones(ids.shape, np.int32) if segment_ids is None else segment_ids.astype(np.int32)
    logits, start = [], 0
    for size in pieces:
        parts = (x[:, start : start + size] for x in (ids, positions, segment_ids))
        piece, cache = reader(config)(*parts, cache)
        logits.append(piece)
        start += size
    return np.concatenate(logits, axis=1), cache


def full_pass(config: ByteConfig, ids: np.ndarray) -> jax.Array:
    """Logits without a cache."""
    graphdef, state = nnx.split(tiny_model(config))
    return jax.jit(lambda state: nnx.merge(graphdef, state)(ids).logits)(state)


def pruned(config: ByteConfig, name: str, slots: int = SLOTS, dtype: Any = jnp.float32) -> PrunedCache:
    return PrunedCache.create(config, B, (slots,) * config.num_hidden_layers, policy(name), dtype)


def kept(cache: PrunedCache) -> np.ndarray:
    """The numbers of the tokens in the slots of each layer, [L, B, K, C]."""
    return np.stack([layer.index for layer in cache.layers])


@functools.cache
def random_text(name: str) -> tuple[np.ndarray, PrunedCache]:
    """Logits of a random text with a budget, and the cache after it."""
    return read(XPOS, pruned(XPOS, name), PIECES, random_tokens(XPOS, B, T))


@pytest.mark.parametrize(
    ("config", "name"), short_tier([(config, name) for config in CONFIGS for name in POLICIES], 1, 19)
)
def test_a_budget_for_all_tokens_changes_no_bit(config: str, name: str) -> None:
    """Whether tokens come in one call or one by one."""
    config = CONFIGS[config]
    ids = random_tokens(config, B, T)
    full, _ = read(config, KVCache.create(config, B, T, slack=T), PIECES, ids)
    logits, cache = read(config, pruned(config, name, T), PIECES, ids)
    assert np.array_equal(logits, full)
    assert np.array_equal(kept(cache), np.broadcast_to(np.arange(T), kept(cache).shape))


@every_policy
def test_no_call_leaves_more_than_the_budget(name: str) -> None:
    ids, cache, length = random_tokens(XPOS, B, T), pruned(XPOS, name), 0
    for size in PIECES:
        now = slice(length, length + size)
        positions = np.broadcast_to(np.arange(T, dtype=np.int32)[now], (B, size))
        logits, cache = reader(XPOS)(ids[:, now], positions, np.ones((B, size), np.int32), cache)
        length += size
        assert np.isfinite(logits).all()
        counts = (kept(cache) >= 0).sum(axis=-1)
        assert (counts == counts.flat[0]).all()
        assert min(length, SLOTS - room(SLOTS)) <= counts.flat[0] <= SLOTS
        always = {*range(min(SINKS, length)), *range(max(0, length - recent(SLOTS)), length)}
        for head in kept(cache).reshape(-1, SLOTS):
            assert always <= set(head)
            assert (np.diff(head[head >= 0]) > 0).all()


def test_a_kept_token_keeps_its_key_and_value() -> None:
    """Of the first layer, whose keys depend on no attention."""
    _, full = read(XPOS, KVCache.create(XPOS, B, T, slack=T), PIECES, random_tokens(XPOS, B, T))
    _, cache = random_text("snap")
    for which in ("keys", "values"):
        held, whole = (np.asarray(getattr(each.layers[0], which).data) for each in (cache, full))
        for row, head in np.ndindex(kept(cache)[0].shape[:2]):
            numbers = kept(cache)[0, row, head]
            assert np.array_equal(held[row, head, numbers >= 0], whole[row, head, numbers[numbers >= 0]])


@every_policy
def test_shifted_positions_keep_the_same_tokens(name: str) -> None:
    positions = np.broadcast_to(np.arange(10_000, 10_000 + T, dtype=np.int32), (B, T))
    _, cache = random_text(name)
    _, shifted = read(XPOS, pruned(XPOS, name), PIECES, random_tokens(XPOS, B, T), positions)
    assert np.array_equal(kept(cache), kept(shifted))


@pytest.mark.long
@pytest.mark.parametrize("config", ["rope", "no positions, experts"])
@every_policy
def test_shifted_positions_keep_the_same_tokens_without_xpos(config: str, name: str) -> None:
    # With qk_norm all keys are equally long, and rounding would say which is the shortest.
    config = dataclasses.replace(CONFIGS[config], qk_norm=CONFIGS[config].qk_norm and name != "norm")
    ids, positions = random_tokens(config, B, T), np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    caches = (read(config, pruned(config, name), PIECES, ids, positions + shift)[1] for shift in (0, 10_000))
    assert np.array_equal(*map(kept, caches))


@every_policy
def test_rows_do_not_see_one_another(name: str) -> None:
    """A row keeps the same and says the same beside a shorter or a longer one, which are pruned at other times."""
    ids, others = random_tokens(XPOS, B, T), random_tokens(XPOS, B, T, seed=1)
    whole = np.ones(T)
    short = np.where((np.arange(T) < 4) | (np.arange(T) >= PIECE), 1, 0)
    positions = np.stack([np.arange(T), np.maximum(np.arange(T) - 6, np.minimum(np.arange(T), 3))]).astype(np.int32)
    beside = read(XPOS, pruned(XPOS, name), PIECES, ids, positions, np.stack([whole, short]))
    again = read(XPOS, pruned(XPOS, name), PIECES, np.stack([others[0], ids[1]]), positions, np.stack([whole, short]))
    alone = random_text(name)
    assert np.array_equal(kept(beside[1])[:, 0], kept(alone[1])[:, 0])
    assert np.array_equal(beside[0][0], alone[0][0])
    assert np.array_equal(kept(beside[1])[:, 1], kept(again[1])[:, 1])
    assert np.array_equal(beside[0][1], again[0][1])
    assert beside[1].lengths.tolist() == [T, T - 6]


def test_padding_is_never_kept_and_documents_do_not_meet() -> None:
    """A row that is padded on the left, and a row of two documents."""
    ids, places = random_tokens(XPOS, B, 3 * PIECE), np.arange(3 * PIECE)
    segment_ids = np.stack([places >= 5, 1 + (places >= 14)])
    positions = np.stack([np.maximum(places - 5, 0), np.where(places < 14, places, places - 14)]).astype(np.int32)
    logits, cache = read(XPOS, pruned(XPOS, "snap"), [PIECE] * 3, ids, positions, segment_ids)
    for head in kept(cache)[0, 0]:
        assert set(range(5, 5 + SINKS)) <= set(head)
        assert head[head >= 0].min() == 5
    for head in kept(cache)[0, 1]:
        assert head[head >= 0].min() >= 14, "the first document is over"
    alone = full_pass(XPOS, ids[1:, 14:])
    assert relative_error(logits[1:, 14:], alone) < 1e-5


@pytest.mark.parametrize("name", short_tier(list(POLICIES), 2))
def test_what_a_window_still_sees_goes_last(name: str) -> None:
    """A window as wide as what is left after pruning: nothing that a query sees is ever gone."""
    config = tiny_config(sliding_window=SLOTS - room(SLOTS), num_hidden_layers=1)
    ids = random_tokens(config, B, T)
    full = full_pass(config, ids)
    logits, _ = read(config, pruned(config, name), PIECES, ids)
    assert relative_error(logits, full) < 1e-5


@every_policy
def test_a_row_that_is_reset_starts_anew(name: str) -> None:
    """And reads the same as in a cache that never held anything else, in spite of what the other row holds."""
    _, cache = random_text(name)
    cache = cache.reset(jnp.array([True, False]))
    assert cache.lengths.tolist() == [0, T]
    ids, places = random_tokens(XPOS, B, T, seed=1), np.arange(T, dtype=np.int32)
    _, again = read(XPOS, cache, [1] * 20, ids[:, :20], np.stack([places[:20], places[:20] + T]))
    _, anew = read(XPOS, random_text(name)[1].reset(jnp.array([True, True])), [1] * 20, ids[:, :20])
    assert np.array_equal(kept(again)[:, 0], kept(anew)[:, 0])
    for there, expected in zip(jax.tree.leaves(again.layers), jax.tree.leaves(anew.layers), strict=True):
        assert there.shape == expected.shape
    attention = again.layers[0].attention
    if attention is not None:
        assert np.array_equal(attention[0], anew.layers[0].attention[0])
        assert not attention[0][again.layers[0].index[0] < 0].any()


def test_heavy_adds_up_what_attention_gave() -> None:
    """With room for all: each query's weights are 1 together, in whatever pieces it came."""
    ids = random_tokens(XPOS, B, T)
    one, other = (
        np.asarray(read(XPOS, pruned(XPOS, "heavy", T), pieces, ids)[1].layers[0].attention)
        for pieces in (PIECES, [PIECE] * 4)
    )
    np.testing.assert_allclose(one.sum(axis=2), T, rtol=1e-5)
    assert relative_error(one, other) < 1e-5
    assert (one[:, :, 0] > one[:, :, -1]).all()


def test_heavy_takes_attentions_own_weights() -> None:
    """A token's softmax is computed once, for attention and policy."""
    ids, position, segment_ids = (jnp.full((B, 1), number, jnp.int32) for number in (5, T, 1))
    step = reader(XPOS)
    heavy, window = (
        step.func.lower(*step.args, ids, position, segment_ids, used(pruned(XPOS, name))).as_text().count("exponential")
        for name in ("heavy", "window")
    )
    assert heavy == window > 0


def test_a_decoding_loop_copies_slots_only_to_prune() -> None:
    """Beside the cache there is room for one layer's keys and values after pruning, whatever the number of layers."""
    config = tiny_config(position_embedding="rope", head_dim=32, num_hidden_layers=3)
    cache = PrunedCache.create(config, 1, (4096,) * 3, policy("window"))
    a_layer = 2 * cache.layers[0].keys.data.nbytes
    assert scratch(config, 1, used(cache), steps=8) < 1.5 * a_layer


def test_memory_is_flat_over_32_budgets() -> None:
    name = "expected"
    _, cache = random_text(name)
    ids = random_tokens(XPOS, B, 32 * SLOTS)
    _, after = read(XPOS, cache, [1] * (32 * SLOTS), ids)
    assert after.lengths.tolist() == [T + 32 * SLOTS] * B
    before, now = (jax.tree.leaves(jax.tree.map(lambda x: (x.shape, x.dtype), each)) for each in (cache, after))
    assert before == now


@pytest.mark.long
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn, jnp.bfloat16])
def test_slots_of_fewer_bits(dtype: Any) -> None:
    """As close to float32 as they are without a budget, as long as the same tokens are kept."""
    ids = random_tokens(XPOS, B, T)
    logits, _ = random_text("window")
    rounded, cache = read(XPOS, pruned(XPOS, "window", dtype=dtype), PIECES, ids)
    assert cache.layers[0].keys.data.dtype.itemsize <= 2
    assert 1e-5 < relative_error(rounded, logits) < 0.5

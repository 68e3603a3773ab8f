"""Law 2: reading in pieces behind a cache changes nothing, wherever they are cut, padded, packed, or around a ring."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte.architecture import RopeScaling
from stellarbyte.errors import UserError
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.slots import CACHE_DTYPES, Slots
from test_jax.tiny import random_tokens, relative_error, segments, tiny_config, tiny_model
from tiers import short_tier

T = 9

CONFIGS = {
    "xpos, grouped": tiny_config(),
    "learnable xpos, one kv head, tied": tiny_config(
        xpos_learnable=True, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "rope, a kv head each": tiny_config(position_embedding="rope", num_key_value_heads=4),
    "no positions, window": tiny_config(position_embedding="none", sliding_window=3),
    "xpos, window of 1": tiny_config(sliding_window=1),
    "rope, window of 2": tiny_config(position_embedding="rope", sliding_window=2, attention_bias=True, qk_norm=True),
    "yarn, deepnorm": tiny_config(
        num_hidden_layers=1, position_embedding="rope", rope_scaling=RopeScaling("yarn", 2.0), residual="deepnorm"
    ),
    "experts, parallel, window": tiny_config(
        num_hidden_layers=1,
        num_experts=4,
        num_shared_experts=1,
        parallel_residual=True,
        sliding_window=4,
        moe_capacity_factor=0.5,
    ),
    "pruned heads, window": tiny_config(pruned_heads=((0, 1), (2,)), sliding_window=3, layer_scale_init=0.5),
}
# Room beyond the window: none, some, and so much that nothing is ever overwritten.
SLACKS = (0, 2, 4 * T)
# Each room changes every program of a config: the short tier has each config with one.
SLACKS_OF_CONFIGS = [
    pytest.param(name, slack, marks=() if slack in few else pytest.mark.long)
    for name, few in {"rope, window of 2": (0,), "no positions, window": (2,), "xpos, grouped": (0,)}.items()
    for slack in SLACKS
]


@functools.cache
def reader(config: ByteConfig, dtype: Any = jnp.float32):
    """(input ids, position ids, segment ids, cache) -> (logits, cache); one program for each number of tokens."""
    graphdef, state = nnx.split(tiny_model(config, dtype).unstack())

    @jax.jit
    def read(state, input_ids, position_ids, segment_ids, cache):
        output = nnx.merge(graphdef, state)(input_ids, position_ids, segment_ids, cache)
        return output.logits, output.cache

    return functools.partial(read, state)


def in_pieces(
    config: ByteConfig, pieces: list[int], slack: int = 0, cache_dtype: Any = jnp.float32, dtype: Any = jnp.float32
) -> np.ndarray:
    """Logits [B, T, V] of `rows` read in pieces of so many tokens; the cache has room to spare."""
    batch, logits, start = rows(config), [], 0
    cache = KVCache.create(config, len(batch["input_ids"]), T + 4, cache_dtype, slack)
    for size in pieces:
        now = slice(start, start + size)
        piece, cache = reader(config, dtype)(
            batch["input_ids"][:, now], batch["position_ids"][:, now], batch["segment_ids"][:, now], cache
        )
        logits.append(piece)
        start += size
    assert start == T
    return np.concatenate(logits, axis=1)


def rows(config: ByteConfig) -> dict[str, np.ndarray]:
    """A plain row, one padded on the left, one packed with three documents, one padded on the right."""
    positions, segment_ids = zip(
        segments(T), segments(T), segments(4, 1, T - 5), segments(T - 3, padding=3), strict=True
    )
    batch = {
        "input_ids": random_tokens(config, 4, T),
        "position_ids": np.concatenate(positions),
        "segment_ids": np.concatenate(segment_ids),
    }
    batch["segment_ids"][1, :3] = 0
    batch["position_ids"][1] = np.maximum(np.arange(T) - 3, 0)
    batch["input_ids"][batch["segment_ids"] == 0] = config.pad_token_id
    return batch


@functools.cache
def forward(config: ByteConfig, dtype: Any = jnp.float32):
    """Logits without a cache."""
    graphdef, state = nnx.split(tiny_model(config, dtype))
    return functools.partial(jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids).logits), state)


@functools.cache
def each_document_alone(config: ByteConfig, dtype: Any = jnp.float32) -> np.ndarray:
    """Logits [B, T, V] of `rows` from a pass over each document by itself, without cache, segments or padding."""
    batch = rows(config)
    logits = np.full((*batch["input_ids"].shape, config.vocab_size), np.nan)
    for row, (ids, segment_ids) in enumerate(zip(batch["input_ids"], batch["segment_ids"], strict=True)):
        for segment in set(segment_ids) - {0}:
            document = ids[segment_ids == segment]
            # One program for all: what stands behind a document changes nothing (law 1).
            padded = np.full((1, T), config.pad_token_id, np.int32)
            padded[0, : len(document)] = document
            logits[row, segment_ids == segment] = forward(config, dtype)(padded)[0, : len(document)]
    return logits


def differences(actual: np.ndarray, expected: np.ndarray) -> float:
    real = ~np.isnan(expected).any(-1)
    return relative_error(actual[real], expected[real])


# In every combination of switches law 2 is stated by tests/test_convert/test_parity.py, after a prompt of one length.
SHORT = ("rope, window of 2", "xpos, window of 1", "no positions, window")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.long) for name in CONFIGS]
)
def test_law_2_every_prefix_length(name: str) -> None:
    config = CONFIGS[name]
    # Each length is a program to compile: all of them once.
    for prefix in range(1, T + 1) if name == "rope, window of 2" else (5,):
        logits = in_pieces(config, [prefix] + [1] * (T - prefix))
        assert differences(logits, each_document_alone(config)) < 1e-5, prefix


@pytest.mark.parametrize(("name", "slack"), SLACKS_OF_CONFIGS)
def test_a_prompt_may_be_read_in_pieces(name: str, slack: int) -> None:
    """Pieces that fit behind what their first token sees, and pieces that would overwrite it, or go around more than
    once."""
    config = CONFIGS[name]
    for pieces in ([1, 3, 5], [5, 3, 1]):
        assert differences(in_pieces(config, pieces, slack), each_document_alone(config)) < 1e-5


@pytest.mark.parametrize(("name", "slack"), [*SLACKS_OF_CONFIGS, ("xpos, window of 1", 0)])
def test_rows_may_be_read_at_different_speeds(name: str, slack: int) -> None:
    """Each call brings some rows fewer tokens than others, or none; positions are those by default."""
    config, steps, B = CONFIGS[name], 3, 3
    rng, length = np.random.default_rng(0), 24
    ids = random_tokens(config, B, length)
    cache, done = KVCache.create(config, B, length + steps, slack=slack), np.zeros(B, int)
    expected = np.asarray(forward(config)(ids))
    while done.min() < length - steps:
        counts = np.minimum(rng.integers(0, steps + 1, B), length - done)
        taken = done[:, None] + np.arange(steps)
        real = np.arange(steps) < counts[:, None]
        some = np.take_along_axis(ids, np.minimum(taken, length - 1), 1)
        logits, cache = reader(config)(np.where(real, some, 2), None, real.astype(np.int32), cache)
        assert np.isfinite(logits).all()
        for row in range(B):
            for t in range(counts[row]):
                assert relative_error(logits[row, t], expected[row, done[row] + t]) < 1e-5
        done += counts
        assert np.array_equal(cache.lengths, done)


@pytest.mark.parametrize(("name", "slack"), SLACKS_OF_CONFIGS)
def test_what_is_clipped_was_never_read(name: str, slack: int) -> None:
    """Of a ring, as many as it has slack; in both rows at once, and then in one."""
    config, more = CONFIGS[name], min(slack, 3)
    ids, wrong = random_tokens(config, 2, 16), random_tokens(config, 2, 16, seed=1)
    expected = np.asarray(forward(config)(ids))
    _, cache = reader(config)(ids[:, :5], None, None, KVCache.create(config, 2, 24, slack=slack))
    for start in range(5, 16):
        before = cache.lengths
        if more:
            _, cache = reader(config)(wrong[:, :more], None, None, cache)
        cache = cache.clip(before)
        assert np.array_equal(cache.lengths, before)
        logits, cache = reader(config)(ids[:, start : start + 1], None, None, cache)
        assert relative_error(logits[:, 0], expected[:, start]) < 1e-5
    assert np.array_equal(cache.clip(jnp.array([3, 99])).lengths, [3, 16])


@pytest.mark.parametrize("name", ["xpos, grouped", "rope, window of 2"])
def test_a_row_that_is_reset_starts_anew_beside_the_others(name: str) -> None:
    config = CONFIGS[name]
    first, second = random_tokens(config, 2, 14), random_tokens(config, 2, 14, seed=1)
    _, cache = reader(config)(first[:, :9], None, None, KVCache.create(config, 2, 20))
    cache = cache.reset(jnp.array([True, False]))
    ids = np.stack([second[0, :5], first[1, 9:]])
    logits = []
    for t in range(5):
        piece, cache = reader(config)(ids[:, t : t + 1], None, None, cache)
        logits.append(piece)
    assert np.array_equal(cache.lengths, [5, 14])
    got = np.concatenate(logits, axis=1)
    assert relative_error(got[0], forward(config)(second[:1, :5])[0]) < 1e-5
    assert relative_error(got[1], forward(config)(first[1:])[0, 9:]) < 1e-5


@pytest.mark.parametrize("slack", short_tier(SLACKS, 0))
def test_padding_stays_finite(slack: int) -> None:
    for pieces in ([1] * T, [3, 3, 3], [1, 8]):
        assert np.isfinite(in_pieces(CONFIGS["no positions, window"], pieces, slack)).all()


# Rounded to 8 bits, by up to 2^-9 of their size. Scores of this model's large weights reach into the tens, so that one
# may move by some hundredths, and a probability by as much of itself: 5 % in all.
BFLOAT16 = (jnp.bfloat16, 5e-2)
# Steps of 1/127 of each vector's largest number, so off by up to 2^-8 of that: twice as far, of the largest.
INT8 = (jnp.int8, 1e-1)
# Rounded to 4 bits, by up to 2^-4 of their size: 32 times as far as in bfloat16, with errors that mostly cancel.
FLOAT8 = (jnp.float8_e4m3fn, 5e-1)


@pytest.mark.parametrize(
    ("name", "cache_dtype", "tolerance"),
    [
        ("xpos, grouped", *BFLOAT16),
        ("no positions, window", *INT8),
        ("xpos, grouped", *FLOAT8),
        pytest.param("no positions, window", *FLOAT8, marks=pytest.mark.long),
        pytest.param("xpos, grouped", *INT8, marks=pytest.mark.long),
        pytest.param("no positions, window", *BFLOAT16, marks=pytest.mark.long),
    ],
)
def test_caches_of_fewer_bits(name: str, cache_dtype: Any, tolerance: float) -> None:
    config = CONFIGS[name]
    alone = each_document_alone(config)
    for pieces in ([4] + [1] * (T - 4), [1, 4, 4]):
        assert 1e-5 < differences(in_pieces(config, pieces, 0, cache_dtype), alone) < tolerance


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn])
def test_few_queries_read_slots_as_they_are(dtype: Any) -> None:
    """Exactly what the slots hold, though int8 is never written out in floats; heads and positions of any size."""
    generator = np.random.default_rng(0)
    sizes = np.logspace(-12, 12, 2 * 7).reshape(1, 2, 7, 1)
    kept = generator.normal(size=(3, 2, 7, 16)) * sizes
    kept[0, 1, 3] = 0
    slots = Slots.create((3, 2, 9, 16), dtype).write(kept.astype(np.float32), np.tile(np.arange(7), (3, 1)))
    held = np.asarray(slots.read(jnp.float32), np.float64)
    if dtype != jnp.int8:
        scales = np.asarray(slots.scales[:, :, :7], np.float64)
        as_jax_rounds = (kept / np.where(scales > 0, scales, 1)).astype(np.float32).astype(dtype).astype(np.float64)
        assert np.mean(np.isclose(held[:, :, :7], as_jax_rounds * scales, rtol=1e-6, atol=0)) > 0.99
    largest = np.abs(kept).max(axis=-1, keepdims=True)
    assert (np.abs(held[:, :, :7] - kept) <= largest * (0.51 / 127 if dtype == jnp.int8 else 0.51 * 32 / 448)).all()
    assert not held[:, :, 7:].any()
    q, weights = (generator.normal(size=(3, 2, 2, size)).astype(np.float32) for size in (16, 9))
    scores = np.einsum("BKQH,BKSH->BKQS", q, held)
    sizes_of_scores = np.abs(scores).max(axis=2, keepdims=True) + 1e-30
    assert (np.abs(slots.scores(q) - scores) / sizes_of_scores).max() < 1e-5
    assert relative_error(slots.sums(weights, jnp.float32), np.einsum("BKQS,BKSH->BKQH", weights, held)) < 1e-6


def test_a_bfloat16_model_reads_the_same_behind_its_cache() -> None:
    """The same roundings on both sides, in another order of sums: a few of bfloat16's 2^-8."""
    config = CONFIGS["xpos, grouped"]
    logits = in_pieces(config, [4] + [1] * (T - 4), 0, jnp.bfloat16, jnp.bfloat16)
    assert differences(logits, each_document_alone(config, jnp.bfloat16)) < 5e-2


def test_positions_and_segments_by_default_continue_the_cache() -> None:
    config = CONFIGS["xpos, grouped"]
    ids = random_tokens(config, 2, T)
    first, cache = reader(config)(ids[:, :5], None, None, KVCache.create(config, 2, T))
    second, _ = reader(config)(ids[:, 5:], None, None, cache)
    assert second.dtype == jnp.float32
    assert relative_error(np.concatenate([first, second], axis=1), forward(config)(ids)) < 1e-5


def bytes_of(cache: KVCache) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


def test_a_windows_memory_is_flat() -> None:
    """32 windows of tokens in the memory of one, and each of them sees what it should."""
    window = 4
    config = tiny_config(sliding_window=window, max_position_embeddings=256, xpos_scale_base=256.0)
    length = 32 * window
    ids = random_tokens(config, 1, length)
    cache = KVCache.create(config, 1, length)
    room = bytes_of(cache)
    assert room == bytes_of(KVCache.create(config, 1, 2 * window)) == bytes_of(KVCache.create(config, 1, 10**6))
    logits, cache = reader(config)(ids[:, :5], None, None, cache)
    assert bytes_of(cache) == room
    pieces = [logits]
    for t in range(5, length):
        logits, cache = reader(config)(ids[:, t : t + 1], None, None, cache)
        pieces.append(logits)
    assert bytes_of(cache) == room
    assert relative_error(np.concatenate(pieces, axis=1), forward(config)(ids)) < 1e-5


def test_bytes_of_each_dtype() -> None:
    config = CONFIGS["xpos, grouped"]
    values = 2 * 2 * 10 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    scales = 4 * values // config.head_dim
    rest = 4 * (2 * 10 + 2)
    sizes = [bytes_of(KVCache.create(config, 2, 10, dtype)) - rest for dtype in CACHE_DTYPES]
    assert sizes == [4 * values, 2 * values, values + scales, values + scales]
    with pytest.raises(UserError, match="cache dtype float16 is not supported: use float32, bfloat16, int8, float8_e"):
        KVCache.create(config, 2, 10, jnp.float16)


def scratch(config: ByteConfig, tokens: int, cache: KVCache, steps: int = 1) -> int:
    """Bytes that a loop of so many steps needs beside the cache, which it may overwrite."""
    graphdef, state = nnx.split(tiny_model(config).unstack())

    def loop(state, ids, cache):
        model = nnx.merge(graphdef, state)
        if steps == 1:
            return model.model(ids, cache=cache).cache
        return jax.lax.fori_loop(0, steps, lambda _, cache: model.model(ids, cache=cache).cache, cache)

    ids = jnp.zeros((len(cache.lengths), tokens), jnp.int32)
    return jax.jit(loop, donate_argnums=2).lower(state, ids, cache).compile().memory_analysis().temp_size_in_bytes


def used(cache: KVCache) -> KVCache:
    """The cache as one that was read into."""
    return dataclasses.replace(cache, fresh=False)


@pytest.mark.parametrize(("window", "batch"), [(None, 1), (2040, 2)])
def test_a_decoding_loop_writes_in_place(window: int | None, batch: int) -> None:
    config = tiny_config(position_embedding="rope", sliding_window=window, head_dim=16)
    cache = used(KVCache.create(config, batch, 4096, slack=8))
    # What it needs are scores and a mask of one call, a few [B, N, S]; a copy of keys or of values would be more.
    assert scratch(config, 1, cache, steps=8) < cache.layers[0].keys.data.nbytes


def test_reading_a_long_prompt_takes_memory_as_reading_it_without_a_cache_does() -> None:
    """By the ordinary kernels; with a window theirs grows with the prompt, not with its square."""
    config = tiny_config(position_embedding="rope", sliding_window=16, num_hidden_layers=1)
    sizes = [scratch(config, length, KVCache.create(config, 1, length)) for length in (1024, 4096)]
    assert sizes[1] < 6 * sizes[0]

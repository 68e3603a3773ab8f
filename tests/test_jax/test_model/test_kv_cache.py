"""Law 2: reading token by token behind a cache changes nothing, at any prefix length, padded or packed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.kv_cache import KVCache
from test_jax.tiny import random_tokens, relative_error, segments, tiny_config, tiny_model

T = 9

CONFIGS = {
    "xpos, grouped": tiny_config(),
    "learnable xpos, one kv head, tied": tiny_config(
        xpos_learnable=True, num_key_value_heads=1, tie_word_embeddings=True
    ),
    "rope, a kv head each": tiny_config(position_embedding="rope", num_key_value_heads=4),
}


class Reader:
    """A model that reads behind a cache, with few programs compiled: one for each number of tokens."""

    def __init__(self, config: ByteConfig, cache_dtype: Any = jnp.float32, dtype: Any = jnp.float32) -> None:
        self.config, self.cache_dtype = config, cache_dtype
        graphdef, state = nnx.split(tiny_model(config, dtype).unstack())

        @jax.jit
        def read(state, input_ids, position_ids, segment_ids, cache):
            output = nnx.merge(graphdef, state)(input_ids, position_ids, segment_ids, cache)
            return output.logits, output.cache

        self._read = functools.partial(read, state)

    def __call__(self, rows: dict[str, np.ndarray], chunks: list[int]) -> np.ndarray:
        """Logits [B, T, V] of rows read in chunks of these many tokens; the cache has room to spare."""
        cache = KVCache.create(self.config, len(rows["input_ids"]), T + 4, self.cache_dtype)
        logits, start = [], 0
        for size in chunks:
            now = slice(start, start + size)
            piece, cache = self._read(
                rows["input_ids"][:, now],
                rows["position_ids"][:, now],
                rows["segment_ids"][:, now],
                cache,
            )
            logits.append(piece)
            start += size
        assert int(cache.length) == start == T
        return np.concatenate(logits, axis=1)


def rows(config: ByteConfig) -> dict[str, np.ndarray]:
    """A plain row, one padded on the left, and one packed with three documents."""
    positions, segment_ids = zip(segments(T), segments(T), segments(4, 1, T - 5), strict=True)
    batch = {
        "input_ids": random_tokens(config, 3, T),
        "position_ids": np.concatenate(positions),
        "segment_ids": np.concatenate(segment_ids),
    }
    batch["input_ids"][1, :3] = config.pad_token_id
    batch["segment_ids"][1, :3] = 0
    batch["position_ids"][1] = np.maximum(np.arange(T) - 3, 0)
    return batch


@functools.cache
def each_document_alone(config: ByteConfig, dtype: Any = jnp.float32) -> np.ndarray:
    """Logits [B, T, V] of `rows` from a pass over each document by itself, without cache, segments or padding."""
    batch = rows(config)
    graphdef, state = nnx.split(tiny_model(config, dtype))
    forward = jax.jit(lambda state, ids: nnx.merge(graphdef, state)(ids).logits)
    logits = np.full((*batch["input_ids"].shape, config.vocab_size), np.nan)
    for row, (ids, segment_ids) in enumerate(zip(batch["input_ids"], batch["segment_ids"], strict=True)):
        for segment in set(segment_ids) - {0}:
            logits[row, segment_ids == segment] = forward(state, ids[None, segment_ids == segment])[0]
    return logits


def differences(actual: np.ndarray, expected: np.ndarray) -> float:
    real = ~np.isnan(expected).any(-1)
    return relative_error(actual[real], expected[real])


@pytest.mark.parametrize("name", CONFIGS)
def test_law_2_every_prefix_length(name: str) -> None:
    config = CONFIGS[name]
    batch, read = rows(config), Reader(config)
    alone = each_document_alone(config)
    # Each length is a program to compile: all of them once, elsewhere those around the documents' borders.
    for prefix in range(1, T + 1) if name == "xpos, grouped" else (1, 4, 5):
        assert differences(read(batch, [prefix] + [1] * (T - prefix)), alone) < 1e-5, prefix


def test_a_prompt_may_be_read_in_pieces() -> None:
    config = CONFIGS["xpos, grouped"]
    batch = rows(config)
    assert differences(Reader(config)(batch, [2, 4, 3]), each_document_alone(config)) < 1e-5


def test_padding_stays_finite() -> None:
    config = CONFIGS["xpos, grouped"]
    assert np.isfinite(Reader(config)(rows(config), [1] * T)).all()


def test_bfloat16_cache() -> None:
    """Keys and values are rounded to 8 bits, by up to 2^-9 of their size. Scores of this model's large weights reach
    into the tens, so that one may move by some hundredths, and a probability by as much of itself: 5 % in all."""
    config = CONFIGS["xpos, grouped"]
    batch = rows(config)
    error = differences(Reader(config, jnp.bfloat16)(batch, [4] + [1] * (T - 4)), each_document_alone(config))
    assert 1e-5 < error < 5e-2


def test_a_bfloat16_model_reads_the_same_behind_its_cache() -> None:
    """The same roundings on both sides, in another order of sums: a few of bfloat16's 2^-8."""
    config = CONFIGS["xpos, grouped"]
    batch = rows(config)
    read = Reader(config, jnp.bfloat16, jnp.bfloat16)
    assert differences(read(batch, [4] + [1] * (T - 4)), each_document_alone(config, jnp.bfloat16)) < 5e-2


def test_positions_and_segments_by_default_continue_the_cache() -> None:
    config = CONFIGS["xpos, grouped"]
    graphdef, state = nnx.split(tiny_model(config))
    forward = jax.jit(lambda state, ids, cache=None: nnx.merge(graphdef, state)(ids, cache=cache))
    ids = random_tokens(config, 2, T)
    first = forward(state, ids[:, :5], KVCache.create(config, 2, T))
    second = forward(state, ids[:, 5:], first.cache)
    assert first.logits.dtype == jnp.float32
    assert relative_error(np.concatenate([first.logits, second.logits], axis=1), forward(state, ids).logits) < 1e-5

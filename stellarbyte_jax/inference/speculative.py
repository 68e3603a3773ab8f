"""Speculative decoding: a small model guesses tokens; the large one checks them in one call, and decides."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from stellarbyte.architecture import ByteConfig
from stellarbyte.errors import UserError
from stellarbyte.sampling import Sampling
from stellarbyte_jax.bounds import check_seed, check_whole
from stellarbyte_jax.inference.prompts import (
    check_prompts,
    check_static_positions,
    in_multiples,
    pad_right,
    until_eos,
)
from stellarbyte_jax.inference.sampling import NOT_FINITE, check_drawn, seen_in_prompts, warp
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.kv_cache import KVCache

# The number of rounds between two calls of `on_tokens`.
STREAM_ROUNDS = 4

# No guess this long is right to its end, and the caches must have room for all of it.
_MOST_DRAFT_TOKENS = 1024


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Speculation:
    """The loop's carry. Both caches hold all tokens of a row except its last one, `token_B`.

    `tokens_BA` holds the `count_B` new tokens of each row; only the repetition penalty needs `seen_BV`.
    """

    cache: KVCache
    draft_cache: KVCache
    token_B: jax.Array
    done_B: jax.Array
    tokens_BA: jax.Array
    count_B: jax.Array
    rounds: jax.Array
    seen_BV: jax.Array | None


class SpeculativeGenerator:
    """Like Generator and with the same results, but faster if the draft guesses well.

    Greedy answers are the same tokens; drawn ones have the same distribution (Leviathan et al. 2023, arXiv:2211.17192).
    A token x that the draft drew from q is kept with probability min(1, p(x) / q(x)). The first one that is not kept is
    drawn anew from max(0, p - q). Each row keeps as many tokens as pass, whatever the other rows do.

    Args:
        model: the large model, whose distribution is p.
        draft: a smaller model with the same vocabulary.
        draft_tokens: the number of tokens that the draft guesses before each check by the model.
        cache_dtype: dtype of the cached keys and values; by default each model's compute dtype.

    Raises:
        UserError: the vocabularies differ, or the draft's context is shorter.
    """

    def __init__(
        self,
        model: ByteForCausalLM,
        draft: ByteForCausalLM,
        draft_tokens: int = 4,
        cache_dtype: DTypeLike | None = None,
    ) -> None:
        self.config: ByteConfig = model.config
        self.context = min(model.config.context_length, draft.config.context_length)
        check_whole("draft_tokens", draft_tokens, 1, _MOST_DRAFT_TOKENS)
        if draft.config.vocab_size != model.config.vocab_size:
            raise UserError(
                f"the draft's vocab_size {draft.config.vocab_size} is not the model's {model.config.vocab_size}: take "
                "a draft that was trained with the same tokenizer"
            )
        self._draft_config, self._draft_tokens = draft.config, draft_tokens
        models = [nnx.split(each.unstack()) for each in (model, draft)]
        self._params = tuple(nnx.to_pure_dict(state) for _, state in models)
        graphdefs = tuple(graphdef for graphdef, _ in models)
        dtypes = tuple(jnp.dtype(cache_dtype or each.execution.dtype) for each in (model, draft))
        self._prefill = jax.jit(
            functools.partial(_prefill, graphdefs, dtypes, draft_tokens), static_argnames=("new_capacity", "sampling")
        )
        self._decode = jax.jit(
            functools.partial(_decode, graphdefs, draft_tokens), static_argnames="sampling", donate_argnames="carry"
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_tokens: Callable[[Sequence[Sequence[int]]], np.ndarray | None] | None = None,
    ) -> list[list[int]]:
        """Continues each prompt until <|SEOS|>, by at most `max_new_tokens`; arguments are as in Generator.generate.

        `on_tokens` gets a list of new tokens for each row; their lengths differ.
        """
        for config in (self.config, self._draft_config):
            check_prompts(config, prompts, max_new_tokens)
            check_static_positions(config, max(map(len, prompts)) + max_new_tokens)
        check_seed("seed", seed)
        sampling, key = sampling or Sampling(), jax.random.key(seed)
        carry = self._prefill(
            self._params,
            *pad_right(prompts, self.config.pad_token_id),
            new_capacity=in_multiples(max_new_tokens),
            sampling=sampling,
        )
        shown_B, wanted_B = np.zeros(len(prompts), int), np.full(len(prompts), max_new_tokens)
        while True:
            rounds = None if on_tokens is None else carry.rounds + STREAM_ROUNDS
            carry = self._decode(
                self._params, carry=carry, limit=max_new_tokens, rounds=rounds, key=key, sampling=sampling
            )
            count_B = np.minimum(np.asarray(carry.count_B), wanted_B)
            rows = np.asarray(carry.tokens_BA)
            check_drawn(rows)
            if on_tokens is not None:
                unwanted_B = on_tokens(
                    [row[start:end].tolist() for row, start, end in zip(rows, shown_B, count_B, strict=True)]
                )
                if unwanted_B is not None:
                    wanted_B = np.where(unwanted_B, np.minimum(wanted_B, count_B), wanted_B)
                    carry = dataclasses.replace(carry, done_B=carry.done_B | jnp.asarray(unwanted_B))
            shown_B = count_B
            if bool(carry.done_B.all()):
                break
        return [until_eos(row[:end].tolist(), self.config.eos_token_id) for row, end in zip(rows, count_B, strict=True)]


def _prefill(
    graphdefs: tuple[nnx.GraphDef[ByteForCausalLM], ...],
    cache_dtypes: tuple[jnp.dtype, ...],
    draft_tokens: int,
    params: tuple[dict[str, Any], ...],
    input_ids_BT: jax.Array,
    segment_ids_BT: jax.Array,
    *,
    new_capacity: int,
    sampling: Sampling,
) -> _Speculation:
    """Reads the prompts, which are padded on the right, except for the last token of each."""
    B, T = input_ids_BT.shape
    rows_B, last_B = jnp.arange(B), segment_ids_BT.sum(axis=1) - 1
    token_B = input_ids_BT[rows_B, last_B]
    read_BT = segment_ids_BT * (jnp.arange(T) < last_B[:, None])
    position_ids_BT = jnp.minimum(jnp.arange(T), jnp.maximum(last_B[:, None] - 1, 0))
    caches = []
    for graphdef, model_params, dtype in zip(graphdefs, params, cache_dtypes, strict=True):
        model = nnx.merge(graphdef, model_params)
        # The cache has room for tokens that a round reads but does not keep.
        cache = KVCache.create(model.config, B, T + new_capacity + draft_tokens + 1, dtype, slack=draft_tokens)
        filled = model.model(input_ids_BT, position_ids_BT, read_BT, cache).cache
        assert isinstance(filled, KVCache)
        caches.append(filled)
    seen_BV = seen_in_prompts(sampling, input_ids_BT, segment_ids_BT, model.config.vocab_size)
    return _Speculation(
        cache=caches[0],
        draft_cache=caches[1],
        token_B=token_B,
        done_B=jnp.zeros((B,), bool),
        tokens_BA=jnp.zeros((B, new_capacity + draft_tokens + 1), jnp.int32),
        count_B=jnp.zeros((B,), jnp.int32),
        rounds=jnp.zeros((), jnp.int32),
        seen_BV=seen_BV,
    )


def _decode(
    graphdefs: tuple[nnx.GraphDef[ByteForCausalLM], ...],
    draft_tokens: int,
    params: tuple[dict[str, Any], ...],
    *,
    carry: _Speculation,
    limit: jax.Array,
    rounds: jax.Array | None,
    key: jax.Array,
    sampling: Sampling,
) -> _Speculation:
    """Runs rounds in one compiled loop until every row has `limit` tokens or is done, or `rounds` rounds are over."""
    model, draft = (nnx.merge(graphdef, each) for graphdef, each in zip(graphdefs, params, strict=True))

    def unfinished(carry: _Speculation) -> jax.Array:
        going_on = ~carry.done_B.all()
        return going_on if rounds is None else going_on & (carry.rounds < rounds)

    def one_round(carry: _Speculation) -> _Speculation:
        draft_key, accept_key, next_key = jax.random.split(jax.random.fold_in(key, carry.rounds), 3)
        draft_cache, drafted_BT, q_BTV = _draft(draft, carry, draft_tokens, draft_key, sampling)
        cache, p_BTV = _check(model, carry, drafted_BT, sampling)
        accepted_B, next_B = _accept(p_BTV, q_BTV, drafted_BT, accept_key, next_key)

        # A row takes the accepted tokens and the next one, but none after an <|SEOS|>. A row that is done takes none.
        slots_T = jnp.arange(draft_tokens + 1)
        new_BT = jnp.pad(drafted_BT, ((0, 0), (0, 1)))
        new_BT = jnp.where(slots_T == accepted_B[:, None], next_B[:, None], new_BT)
        ends_BT = (new_BT == model.config.eos_token_id) & (slots_T <= accepted_B[:, None])
        ended_B = ends_BT.any(axis=1)
        taken_B = jnp.where(ended_B, jnp.argmax(ends_BT, axis=1) + 1, accepted_B + 1)
        taken_B = jnp.where(carry.done_B, 0, taken_B)
        is_taken_BT = slots_T < taken_B[:, None]

        rows_B1 = jnp.arange(new_BT.shape[0])[:, None]
        places_BT = jnp.where(is_taken_BT, carry.count_B[:, None] + slots_T, carry.tokens_BA.shape[1])
        count_B = carry.count_B + taken_B
        last_B = jnp.take_along_axis(new_BT, jnp.maximum(taken_B - 1, 0)[:, None], axis=1)[:, 0]
        seen_BV = carry.seen_BV
        if seen_BV is not None:
            seen_BV = seen_BV.at[rows_B1, new_BT].max(is_taken_BT)
        lengths_B = carry.cache.lengths + taken_B
        return _Speculation(
            cache=cache.clip(lengths_B),
            draft_cache=draft_cache.clip(lengths_B),
            token_B=jnp.where(taken_B > 0, last_B, carry.token_B),
            done_B=carry.done_B | ended_B | (count_B >= limit),
            tokens_BA=carry.tokens_BA.at[rows_B1, places_BT].set(new_BT, mode="drop"),
            count_B=count_B,
            rounds=carry.rounds + 1,
            seen_BV=seen_BV,
        )

    return jax.lax.while_loop(unfinished, one_round, carry)


def _draft(
    draft: ByteForCausalLM, carry: _Speculation, count: int, key: jax.Array, sampling: Sampling
) -> tuple[KVCache, jax.Array, jax.Array]:
    """The cache with `token_B` and all guesses read; the guesses [B, count]; their distributions q [B, count, V]."""

    def guess(state, step):  # type: ignore[no-untyped-def]
        cache, token_B, seen_BV = state
        output = draft(token_B[:, None], _positions(draft.config, cache, 1), cache=cache)
        logits_BV = warp(output.logits[:, 0], sampling, seen_BV)
        token_B = jax.random.categorical(jax.random.fold_in(key, step), logits_BV).astype(jnp.int32)
        if seen_BV is not None:
            seen_BV = seen_BV.at[jnp.arange(token_B.size), token_B].set(True)
        return (output.cache, token_B, seen_BV), (token_B, jax.nn.softmax(logits_BV))

    # There is one step more than there are guesses, so that the last guess is read too.
    state = (carry.draft_cache, carry.token_B, carry.seen_BV)
    (cache, _, _), (drafted_TB, q_TBV) = jax.lax.scan(guess, state, jnp.arange(count + 1))
    return cache, drafted_TB[:count].T, q_TBV[:count].swapaxes(0, 1)


def _check(
    model: ByteForCausalLM, carry: _Speculation, drafted_BT: jax.Array, sampling: Sampling
) -> tuple[KVCache, jax.Array]:
    """The cache with `token_B` and all guesses read, and the distribution p after each, [B, count + 1, V]."""
    read_BT = jnp.concatenate([carry.token_B[:, None], drafted_BT], axis=1)
    output = model(read_BT, _positions(model.config, carry.cache, read_BT.shape[1]), cache=carry.cache)
    assert isinstance(output.cache, KVCache)
    seen_MV = None
    if carry.seen_BV is not None:
        guessed_BTV = jax.nn.one_hot(drafted_BT, carry.seen_BV.shape[1], dtype=jnp.int32).cumsum(axis=1) > 0
        guessed_BTV = jnp.pad(guessed_BTV, ((0, 0), (1, 0), (0, 0)))
        seen_MV = (carry.seen_BV[:, None] | guessed_BTV).reshape(-1, carry.seen_BV.shape[1])
    logits_MV = warp(output.logits.reshape(-1, output.logits.shape[-1]), sampling, seen_MV)
    return output.cache, jax.nn.softmax(logits_MV).reshape(output.logits.shape)


def _accept(
    p_BTV: jax.Array, q_BTV: jax.Array, drafted_BT: jax.Array, accept_key: jax.Array, next_key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The number of guesses that each row keeps, and the token that follows them: int32 [B] each."""
    count = drafted_BT.shape[1]
    p_of_guess_BT = jnp.take_along_axis(p_BTV[:, :count], drafted_BT[..., None], axis=-1)[..., 0]
    q_of_guess_BT = jnp.take_along_axis(q_BTV, drafted_BT[..., None], axis=-1)[..., 0]
    # u < p / q, without dividing by a q that may be 0.
    kept_BT = jax.random.uniform(accept_key, drafted_BT.shape) * q_of_guess_BT < p_of_guess_BT
    accepted_B = jnp.cumprod(kept_BT.astype(jnp.int32), axis=1).sum(axis=1)

    # After the last guess there is no further one: q is 0 there, and what is left to draw from is p itself.
    q_BTV = jnp.pad(q_BTV, ((0, 0), (0, 1), (0, 0)))
    p_BV, q_BV = (jnp.take_along_axis(x, accepted_B[:, None, None], axis=1)[:, 0] for x in (p_BTV, q_BTV))
    rest_BV = jnp.maximum(p_BV - q_BV, 0)
    # If rounding leaves nothing, p and q were equal.
    rest_BV = jnp.where(rest_BV.sum(axis=-1, keepdims=True) > 0, rest_BV, p_BV)
    next_B = jax.random.categorical(next_key, jnp.log(rest_BV)).astype(jnp.int32)
    return accepted_B, jnp.where(jnp.isnan(rest_BV).any(axis=-1), NOT_FINITE, next_B)


def _positions(config: ByteConfig, cache: KVCache, count: int) -> jax.Array:
    # Tokens beyond the context are never kept. Their positions are cut so that their values stay finite and dynamic
    # scaling does not depend on them.
    return jnp.minimum(cache.next_positions(count), config.max_position_embeddings - 1)

"""Continues prompts: one prefill, then decoding in a compiled loop."""

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
from stellarbyte.kv_cache.settings import KVPruning
from stellarbyte.sampling import Sampling
from stellarbyte_jax.bounds import check_seed
from stellarbyte_jax.inference.prompts import (
    check_prompts,
    in_multiples,
    pad_right,
    until_eos,
)
from stellarbyte_jax.inference.sampling import NOT_FINITE, check_drawn, sample, seen_in_prompts
from stellarbyte_jax.model.caches import Cache
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.pruned_cache import PrunedCache

# The number of tokens that are decoded between two calls of `on_tokens`.
STREAM_TOKENS = 8


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Decoding:
    """The loop's carry.

    The model has not yet read `token_B`, the last token drawn; `tokens_BA` holds all `count` tokens drawn. `seen_BV`
    tells which tokens the prompt and the answer hold; only the repetition penalty needs it.
    """

    cache: Cache
    token_B: jax.Array
    done_B: jax.Array
    tokens_BA: jax.Array
    count: jax.Array
    seen_BV: jax.Array | None


class Generator:
    """A model ready to continue prompts; models that differ only in their weights share compiled programs.

    Args:
        model: the model, with its compute dtype.
        cache_dtype: dtype of the cached keys and values; by default the compute dtype.
        prompt_room: a function from the longest prompt's length to the length that prompts are padded to. Each of its
            values is compiled once.
        pruning: the budget of keys and values, and what is kept within it; by default all are kept.
    """

    def __init__(
        self,
        model: ByteForCausalLM,
        cache_dtype: DTypeLike | None = None,
        prompt_room: Callable[[int], int] = in_multiples,
        pruning: KVPruning | None = None,
    ) -> None:
        self.config: ByteConfig = model.config
        self.context = model.config.context_length
        self._prompt_room, self._pruning = prompt_room, pruning
        graphdef, state = nnx.split(model.unstack())
        self._params = nnx.to_pure_dict(state)
        hashable: Any = pruning  # as its Policy is
        self._prefill, self._decode = _programs(graphdef, jnp.dtype(cache_dtype or model.execution.dtype), hashable)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling | None = None,
        seed: int = 0,
        on_tokens: Callable[[np.ndarray], np.ndarray | None] | None = None,
    ) -> list[list[int]]:
        """Continues each prompt until <|SEOS|>, by at most `max_new_tokens`.

        Args:
            prompts: token ids of each prompt; prompts may have any lengths from 1.
            max_new_tokens: the largest number of tokens that is added to each.
            sampling: how tokens are drawn; greedy by default.
            seed: the seed of the draws.
            on_tokens: called with new tokens, int32 [B, A], as they come; rows that are done hold <|PAD|>. It may
                return bool [B], which is true for each row that is to end.

        Returns:
            The new tokens of each prompt, without <|SEOS|>. A row that `on_tokens` has ended has all tokens that
            `on_tokens` was called with.

        Raises:
            UserError: a prompt is empty or leaves no room in the context, the seed is not from 0 to 2^32 - 1, or the
                logits are not finite.
        """
        check_prompts(self.config, prompts, max_new_tokens)
        check_seed("seed", seed)
        sampling, key = sampling or Sampling(), jax.random.key(seed)
        input_ids_BT, segment_ids_BT = pad_right(prompts, self.config.pad_token_id, self._prompt_room)
        carry = self._prefill(
            self._params,
            input_ids_BT,
            segment_ids_BT,
            key,
            new_capacity=in_multiples(max_new_tokens),
            sampling=sampling,
            layer_slots=self._layer_slots(max(map(len, prompts)), max_new_tokens),
        )
        shown, ends = 0, [max_new_tokens] * len(prompts)
        while True:
            count = int(carry.count)
            new_BA = np.asarray(carry.tokens_BA[:, shown:count])
            check_drawn(new_BA)
            unwanted_B = None if on_tokens is None else on_tokens(new_BA)
            if unwanted_B is not None:
                ends = [min(end, count) if unwanted else end for end, unwanted in zip(ends, unwanted_B, strict=True)]
                carry = dataclasses.replace(carry, done_B=carry.done_B | jnp.asarray(unwanted_B))
            shown = count
            if count == max_new_tokens or bool(carry.done_B.all()):
                break
            limit = max_new_tokens if on_tokens is None else min(count + STREAM_TOKENS, max_new_tokens)
            carry = self._decode(self._params, carry=carry, limit=limit, key=key, sampling=sampling)
        rows = np.asarray(carry.tokens_BA[:, :shown]).tolist()
        return [until_eos(row[:end], self.config.eos_token_id) for row, end in zip(rows, ends, strict=True)]

    def _layer_slots(self, prompt_tokens: int, new_tokens: int) -> tuple[int, ...] | None:
        """The slots of a pruned cache in each layer; None if a text of so many tokens needs none pruned."""
        if self._pruning is None:
            return None
        return self._pruning.layer_slots(
            prompt_tokens + new_tokens, self.config.num_hidden_layers, self.config.sliding_window
        )


# Bounded, because what is kept holds compiled programs.
@functools.lru_cache(maxsize=16)
def _programs(
    graphdef: nnx.GraphDef[ByteForCausalLM], cache_dtype: jnp.dtype, pruning: KVPruning | None
) -> tuple[Callable[..., _Decoding], Callable[..., _Decoding]]:
    """_prefill and _decode of a model, the same for each model that is alike."""
    prefill = functools.partial(_prefill, graphdef, cache_dtype, pruning)
    return (
        jax.jit(prefill, static_argnames=("new_capacity", "sampling", "layer_slots")),
        jax.jit(functools.partial(_decode, graphdef), static_argnames="sampling", donate_argnames="carry"),
    )


def _prefill(
    graphdef: nnx.GraphDef[ByteForCausalLM],
    cache_dtype: jnp.dtype,
    pruning: KVPruning | None,
    params: dict[str, Any],
    input_ids_BT: jax.Array,
    segment_ids_BT: jax.Array,
    key: jax.Array,
    *,
    new_capacity: int,
    sampling: Sampling,
    layer_slots: tuple[int, ...] | None,
) -> _Decoding:
    """Reads the prompts, which are padded on the right, and draws the first new token of each."""
    model = nnx.merge(graphdef, params)
    B, T = input_ids_BT.shape
    lengths_B = segment_ids_BT.sum(axis=1)
    # Padding repeats the last token's position, because dynamic scaling depends on the largest position.
    position_ids_BT = jnp.minimum(jnp.arange(T), lengths_B[:, None] - 1)
    cache: Cache
    if layer_slots is None or pruning is None:
        cache = KVCache.create(model.config, B, T + new_capacity, cache_dtype)
    else:
        cache = PrunedCache.create(model.config, B, layer_slots, pruning.policy, cache_dtype, shared=pruning.shared)
    output = model.model(input_ids_BT, position_ids_BT, segment_ids_BT, cache)
    assert output.cache is not None
    seen_BV = seen_in_prompts(sampling, input_ids_BT, segment_ids_BT, model.config.vocab_size)
    last_B1D = output.hidden[jnp.arange(B), lengths_B - 1][:, None]
    token_B = sample(model.logits(last_B1D)[:, 0], sampling, jax.random.fold_in(key, 0), seen_BV)
    return _Decoding(
        cache=output.cache,
        token_B=token_B,
        done_B=(token_B == model.config.eos_token_id) | (token_B == NOT_FINITE),
        tokens_BA=jnp.zeros((B, new_capacity), jnp.int32).at[:, 0].set(token_B),
        count=jnp.ones((), jnp.int32),
        seen_BV=_seen_too(seen_BV, token_B),
    )


def _decode(
    graphdef: nnx.GraphDef[ByteForCausalLM],
    params: dict[str, Any],
    *,
    carry: _Decoding,
    limit: jax.Array,
    key: jax.Array,
    sampling: Sampling,
) -> _Decoding:
    """Draws tokens in one compiled loop until there are `limit` of them or every row is done."""
    model = nnx.merge(graphdef, params)

    def unfinished(carry: _Decoding) -> jax.Array:
        return (carry.count < limit) & ~carry.done_B.all()

    def draw(carry: _Decoding) -> _Decoding:
        output = model(carry.token_B[:, None], cache=carry.cache)
        assert output.cache is not None
        token_B = sample(output.logits[:, 0], sampling, jax.random.fold_in(key, carry.count), carry.seen_BV)
        token_B = jnp.where(carry.done_B, model.config.pad_token_id, token_B)
        return _Decoding(
            cache=output.cache,
            token_B=token_B,
            done_B=carry.done_B | (token_B == model.config.eos_token_id) | (token_B == NOT_FINITE),
            tokens_BA=carry.tokens_BA.at[:, carry.count].set(token_B),
            count=carry.count + 1,
            seen_BV=_seen_too(carry.seen_BV, token_B),
        )

    return jax.lax.while_loop(unfinished, draw, carry)


def _seen_too(seen_BV: jax.Array | None, token_B: jax.Array) -> jax.Array | None:
    return None if seen_BV is None else seen_BV.at[jnp.arange(token_B.size), token_B].set(True)

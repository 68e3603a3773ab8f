"""Reads rows by the model of a run, in JAX."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.kv_report.measuring import Reading, Setting
from stellarbyte.kv_cache.budgets import layer_slots
from stellarbyte.places import Place
from stellarbyte_jax.model.caches import Cache
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.pruned_cache import PrunedCache
from stellarbyte_jax.training.load import load_model

Graph = nnx.GraphDef[ByteForCausalLM]


class JaxReader:
    """A run's model, in float32. Raises UserError: the run has no such checkpoint, or is damaged."""

    def __init__(self, run_dir: Place, step: int | None) -> None:
        model, _, _ = load_model(run_dir, step, "float32")
        self._config = model.config
        graphdef, state = nnx.split(model.unstack())
        self._params = nnx.to_pure_dict(state)
        self._prompt = jax.jit(functools.partial(_read_prompt, graphdef))
        self._rest = jax.jit(functools.partial(_read_rest, graphdef))
        self._guesses = jax.jit(functools.partial(_guess, graphdef))

    def read(self, ids_NT: np.ndarray, prompt: int, setting: Setting | None) -> Reading:
        """Reads rows whose first `prompt` tokens are the prompt."""
        (N, T), rest_NS = ids_NT.shape, ids_NT[:, prompt:]
        _, cache = self._prompt(self._params, ids_NT[:, :prompt], self._empty(N, T, setting))
        kept = [np.asarray(layer.index) for layer in cache.layers] if isinstance(cache, PrunedCache) else []
        program = self._rest.lower(self._params, rest_NS, cache).compile()  # its time is none of the model's
        started = time.perf_counter()
        loss, cache = jax.block_until_ready(program(self._params, rest_NS, cache))
        seconds = time.perf_counter() - started
        held = jax.tree.leaves([(layer.keys, layer.values) for layer in cache.layers])
        cache_bytes = sum(array.nbytes for array in held) // N
        return Reading(float(loss), kept, cache_bytes, N * (rest_NS.shape[1] - 1) / seconds)

    def guess(self, ids_MP: np.ndarray, answers_MA: np.ndarray, setting: Setting | None) -> np.ndarray:
        """The likeliest token in the place of each token of the answers, once it has read all before it: [M, A]."""
        (M, P), A = ids_MP.shape, answers_MA.shape[1]
        first_MV, cache = self._prompt(self._params, ids_MP, self._empty(M, P + A, setting))
        guesses_MA = self._guesses(self._params, answers_MA[:, :-1], cache)
        return np.concatenate([np.asarray(first_MV).argmax(axis=-1)[:, None], np.asarray(guesses_MA)], axis=1)

    def _empty(self, rows: int, capacity: int, setting: Setting | None) -> Cache:
        if setting is None:
            return KVCache.create(self._config, rows, capacity)
        sizes = layer_slots(setting.shape, setting.slots, self._config.num_hidden_layers)
        return PrunedCache.create(self._config, rows, sizes, setting.policy, shared=setting.shape == "entropy")


def _read_prompt(graphdef: Graph, params: Any, ids_NP: jax.Array, cache: Cache) -> tuple[jax.Array, Any]:
    """The logits after the last token, [N, V], and the cache."""
    model = nnx.merge(graphdef, params)
    output = model.model(ids_NP, cache=cache)
    return model.logits(output.hidden[:, -1:])[:, 0], output.cache


def _read_rest(graphdef: Graph, params: Any, ids_NS: jax.Array, cache: Cache) -> tuple[jax.Array, Any]:
    """The mean loss of each token that follows another, which is read alone, and the cache."""
    model = nnx.merge(graphdef, params)

    def read(cache: Any, tokens: Any) -> Any:
        token_N, next_N = tokens
        output = model(token_N[:, None], cache=cache)
        log_p_NV = jax.nn.log_softmax(output.logits[:, 0])
        return output.cache, -jnp.take_along_axis(log_p_NV, next_N[:, None], axis=1).mean()

    cache, losses_S = jax.lax.scan(read, cache, (ids_NS[:, :-1].T, ids_NS[:, 1:].T))
    return losses_S.mean(), cache


def _guess(graphdef: Graph, params: Any, ids_NS: jax.Array, cache: Cache) -> jax.Array:
    """The likeliest token after each of these, which are read one after another: [N, S]."""
    model = nnx.merge(graphdef, params)

    def read(cache: Any, token_N: jax.Array) -> Any:
        output = model(token_N[:, None], cache=cache)
        return output.cache, output.logits[:, 0].argmax(axis=-1)

    return jax.lax.scan(read, cache, ids_NS.T)[1].T

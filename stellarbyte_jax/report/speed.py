"""A run's model in JAX whose passes can be timed, and what its device reaches at its best."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.host_memory import free_bytes
from stellarbyte.report.machine import Operations, measure_machine, sizes
from stellarbyte.report.measurements import Machine
from stellarbyte.report.timing import ROOM, Pass
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.kv_cache import KVCache

Graph = nnx.GraphDef[ByteForCausalLM]


class JaxEngine:
    """A model on one device; see stellarbyte.report.timing.Engine."""

    def __init__(self, model: ByteForCausalLM) -> None:
        self._config, self._dtype = model.config, jnp.dtype(model.execution.dtype)
        graphdef, state = nnx.split(model.unstack())
        self._params = nnx.to_pure_dict(state)
        self._prefill = jax.jit(functools.partial(_read, graphdef, self._dtype))
        self._decode = jax.jit(functools.partial(_go_on, graphdef), donate_argnums=2)
        self.library = f"jax {jax.__version__}"

    def machine(self) -> Machine:
        """See Engine; of a few matrices and arrays in the dtype of the computation."""
        is_cpu = jax.default_backend() == "cpu"
        weight_bytes = sum(array.nbytes for array in jax.tree.leaves(self._params))
        side, nbytes = sizes(is_processor=is_cpu, weight_bytes=weight_bytes)
        square = jnp.ones((side, side), self._dtype)
        large = jnp.ones(nbytes // self._dtype.itemsize, self._dtype)
        # They are arguments, because the compiler computes constants by itself.
        product, copy, total = jax.jit(lambda x: x @ x), jax.jit(lambda x: x + 1), jax.jit(jnp.sum)
        operations = Operations(lambda: _wait(product(square)), lambda: _wait(copy(large)), lambda: _wait(total(large)))
        device = None if is_cpu else jax.devices()[0].device_kind
        threads = len(os.sched_getaffinity(0)) if is_cpu and hasattr(os, "sched_getaffinity") else None
        return measure_machine(operations, side, nbytes, self._dtype.name, device, threads)

    def prefill(self, batch: int, length: int) -> Pass:
        """See Engine."""
        ids_BT = self._ids(batch, length)
        program, seconds = _compiled(self._prefill, self._params, ids_BT)
        return Pass(lambda: _wait(program(self._params, ids_BT)), seconds, lambda: None)

    def decode(self, batch: int, length: int) -> Pass:
        """See Engine."""
        token_B, held = self._ids(batch, 1)[:, 0], [self._cache(batch, length)]
        program, seconds = _compiled(self._decode, self._params, token_B, held[0])

        def run() -> None:
            _, held[0] = _wait(program(self._params, token_B, held[0]))

        return Pass(run, seconds, held.clear)

    def room(self) -> int | None:
        """See Engine."""
        return free_bytes() if jax.default_backend() == "cpu" else None

    def is_out_of_memory(self, error: Exception) -> bool:
        """See Engine."""
        return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)

    def _cache(self, batch: int, length: int) -> KVCache:
        """A cache that holds so many tokens; all of them are zeros, which costs no pass over them."""
        cache = KVCache.create(self._config, batch, length + ROOM, self._dtype)
        lengths_B, segment_ids = jnp.full((batch,), length, jnp.int32), jnp.ones_like(cache.segment_ids)
        return dataclasses.replace(cache, segment_ids=segment_ids, lengths=lengths_B, fresh=False)

    def _ids(self, batch: int, length: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, self._config.vocab_size, (batch, length)).astype(np.int32)


def _read(graphdef: Graph, dtype: jnp.dtype, params: Any, ids_BT: jax.Array) -> tuple[jax.Array, Any]:
    """The logits after the last token, and a new cache that holds the prompt."""
    model = nnx.merge(graphdef, params)
    batch, length = ids_BT.shape
    cache = KVCache.create(model.config, batch, length, dtype)
    output = model.model(ids_BT, cache=cache)
    return model.logits(output.hidden[:, -1:])[:, 0], output.cache


def _go_on(graphdef: Graph, params: Any, token_B: jax.Array, cache: KVCache) -> tuple[jax.Array, Any]:
    output = nnx.merge(graphdef, params)(token_B[:, None], cache=cache)
    return output.logits[:, 0], output.cache


def _compiled(function: Any, *arguments: Any) -> tuple[Callable[..., Any], float]:
    """(the program, the seconds that tracing and compiling it took)."""
    start = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - start


def _wait(result: Any) -> Any:
    return jax.block_until_ready(result)

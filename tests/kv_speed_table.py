"""How fast a cache within a budget decodes: `python -m tests.kv_speed_table MODEL.yaml`.

Of a model with random weights, at one context and one budget: tokens/s with all keys and values, with a full cache that
is as small as the budget, and with each policy. The last two differ by what pruning costs: of the least time of all
rounds, and of the rounds one by one, in which all take turns.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax import nnx

from stellarbyte.kv_cache.registry import POLICIES, policy
from stellarbyte.kv_cache.selection import room
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.pruned_cache import PrunedCache


def full(config: ByteConfig, capacity: int, tokens: int) -> KVCache:
    """A cache of random keys and values that has read so many tokens."""
    cache = filled(KVCache.create(config, 1, capacity))
    return dataclasses.replace(cache, lengths=jnp.array([tokens]), segment_ids=jnp.ones_like(cache.segment_ids))


def within(config: ByteConfig, name: str, slots: int, tokens: int) -> PrunedCache:
    """A pruned cache of random keys and values, with all slots full."""
    cache = filled(PrunedCache.create(config, 1, (slots,) * config.num_hidden_layers, policy(name)))
    index = jnp.arange(tokens - slots, tokens, dtype=jnp.int32)
    layers = tuple(
        dataclasses.replace(layer, index=jnp.broadcast_to(index, layer.index.shape)) for layer in cache.layers
    )
    newest = jnp.arange(tokens - cache.query_index.shape[1], tokens, dtype=jnp.int32)
    return dataclasses.replace(
        cache,
        layers=layers,
        full={slots: jnp.array([slots])},
        lengths=jnp.array([tokens]),
        segments=jnp.array([1]),
        query_index=newest[None],
    )


def filled(cache: Any) -> Any:
    """The cache with random numbers in its arrays of floats."""
    rng = np.random.default_rng(0)

    def random(x: jax.Array) -> jax.Array:
        return jnp.asarray(rng.normal(size=x.shape), x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    return dataclasses.replace(jax.tree.map(random, cache), fresh=False)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.yaml")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policies", default=",".join(POLICIES), metavar="LIST")
    options = parser.parse_args()
    fields = yaml.safe_load(options.model.read_text(encoding="utf-8"))
    config = ByteConfig(**(fields | {"max_position_embeddings": 2 * options.context, "xpos_scale_base": 4096.0}))
    graphdef, state = nnx.split(ByteForCausalLM(config, rngs=nnx.Rngs(0)).unstack())
    policies = options.policies.split(",")
    steps = 2 * room(options.slots)  # each policy prunes twice

    def loop(state: Any, cache: Any) -> Any:
        model = nnx.merge(graphdef, state)

        def step(_: Any, carry: Any) -> Any:
            cache, token_11 = carry
            output = model(token_11, cache=cache)
            return output.cache, output.logits.argmax(axis=-1).astype(jnp.int32)

        return jax.lax.fori_loop(0, steps, step, (cache, jnp.full((1, 1), 5, jnp.int32)))

    caches = {
        "full": lambda: full(config, options.context + steps, options.context),
        f"full, {options.slots} tokens": lambda: full(config, options.slots, options.slots - steps),
        **{name: lambda name=name: within(config, name, options.slots, options.context) for name in policies},
    }
    programs = {name: jax.jit(loop, donate_argnums=1).lower(state, make()).compile() for name, make in caches.items()}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in caches}
    for _ in range(options.rounds):
        for name, make in caches.items():
            cache = jax.block_until_ready(make())
            start, busy = time.perf_counter(), time.process_time()
            jax.block_until_ready(programs[name](state, cache))
            rounds[name].append(((time.perf_counter() - start) / steps, (time.process_time() - busy) / steps))
    print(f"{options.model}, {options.context} tokens of context, {options.slots} slots, {steps} steps")
    print("| | cache | scratch | tokens/s | CPU ms a token | as fast as full | pruning costs | in the median round |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    all_took = {name: np.array(took) for name, took in rounds.items()}
    small = all_took[f"full, {options.slots} tokens"][:, 1]
    full_cpu = all_took["full"][:, 1].min()
    for name, took in all_took.items():
        wall, cpu = took.min(axis=0)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(caches[name]()))
        scratch = programs[name].memory_analysis().temp_size_in_bytes
        cost = median = ""
        if name in policies:
            cost, median = f"{cpu / small.min() - 1:+.1%}", f"{np.median(took[:, 1] / small) - 1:+.1%}"
        print(
            f"| {name} | {kept / 1e6:.1f} MB | {scratch / 1e6:.1f} MB | {1 / wall:.1f} | {1e3 * cpu:.2f} | "
            f"{full_cpu / cpu:.2f} | {cost} | {median} |"
        )


if __name__ == "__main__":
    main()

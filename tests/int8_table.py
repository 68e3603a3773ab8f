"""What 8 bits cost and save in generating text: `python -m tests.int8_table RUN`, or `--speed MODEL.yaml`.

Of a run: how far weights, keys and values of fewer bits move the next token's distribution on its validation text, and
the loss of its weights on a grid. Of a model with random weights: memory, and tokens/s of decoding, alternating.
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import yaml
from flax import nnx

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.inference.generate import Generator
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.weight_grid import WeightGrid
from stellarbyte_jax.training.evaluation import load_trained_run
from stellarbyte_jax.training.state import abstract_model

# Name -> (whether weights are in int8, dtype of keys and values).
KINDS: dict[str, tuple[bool, str]] = {
    "float32": (False, "float32"),
    "weights int8": (True, "float32"),
    "cache int8": (False, "int8"),
    "cache float8": (False, "float8_e4m3fn"),
    "both int8": (True, "int8"),
}
GRIDS = {"w4": WeightGrid(4, None), "w4 g64": WeightGrid(4, 64), "w8": WeightGrid(8, None)}


def quality(run_dir: str, batches: int) -> None:
    """Prints loss, KL and top-1 agreement over the second half of each row, which reads the first from the cache."""
    run = load_trained_run(run_dir)
    config = run.config.model
    model = nnx.merge(abstract_model(config)[0], jax.device_put(run.params))
    models = {False: model, True: model.in_int8()}
    read = {name: _reader(models[weights], dtype) for name, (weights, dtype) in KINDS.items()}
    sums: dict[str, np.ndarray] = {name: np.zeros(3) for name in KINDS}
    tokens = 0
    for batch in run.validation_batches(batches):
        half = batch["labels"].shape[1] // 2
        labels = batch["labels"][:, half:]
        real = labels != IGNORED_LABEL
        tokens += int(real.sum())
        expected = np.asarray(read["float32"](batch))
        for name in KINDS:
            found = np.asarray(read[name](batch))
            loss = -np.take_along_axis(found, np.maximum(labels, 0)[..., None], -1)[..., 0]
            kl = (np.exp(expected) * (expected - found)).sum(-1)
            same = found.argmax(-1) == expected.argmax(-1)
            sums[name] += [float((value * real).sum()) for value in (loss, kl, same)]
    print(f"{run_dir}, step {run.step}, {tokens} tokens")
    print("| | loss | KL | top-1 as float32 |\n| --- | --- | --- | --- |")
    for name, (loss, kl, same) in sums.items():
        print(f"| {name} | {loss / tokens:.4f} | {kl / tokens:.2e} | {100 * same / tokens:.2f} % |")
    print("\n| weights on a grid | loss |\n| --- | --- |")
    for name, grid in ({"float32": None} | GRIDS).items():
        graphdef, _ = abstract_model(config, Execution(weight_grid=grid))
        forward = _reader(nnx.merge(graphdef, jax.device_put(run.params)), "float32")
        total = 0.0
        for batch in run.validation_batches(batches):
            labels = batch["labels"][:, batch["labels"].shape[1] // 2 :]
            taken = np.take_along_axis(np.asarray(forward(batch)), np.maximum(labels, 0)[..., None], -1)[..., 0]
            total -= float((taken * (labels != IGNORED_LABEL)).sum())
        print(f"| {name} | {total / tokens:.4f} |")


def _reader(model: ByteForCausalLM, cache_dtype: str) -> Any:
    """(batch) -> log probabilities of the second half of its rows."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def read(state: Any, batch: dict[str, jax.Array]) -> jax.Array:
        model = nnx.merge(graphdef, state).unstack()
        B, T = batch["input_ids"].shape
        cache = KVCache.create(model.config, B, T, cache_dtype)
        for now in (slice(0, T // 2), slice(T // 2, T)):
            arrays = (batch.get(name) for name in ("input_ids", "position_ids", "segment_ids"))
            output = model(*(None if array is None else array[:, now] for array in arrays), cache)
            cache = output.cache
        return jax.nn.log_softmax(output.logits)

    return lambda batch: read(state, {name: jnp.asarray(array) for name, array in batch.items()})


def speed(path: Path, prompt_tokens: int, new_tokens: int, rounds: int) -> None:
    """Prints memory and the best of `rounds` for each kind, which take turns; by the clock, and by the CPU's time."""
    config = ByteConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    model = ByteForCausalLM(config, rngs=nnx.Rngs(0))
    models = {False: model, True: model.in_int8()}
    generators = {name: Generator(models[weights], dtype) for name, (weights, dtype) in KINDS.items()}
    prompt = np.random.default_rng(0).integers(3, config.vocab_size, prompt_tokens).tolist()
    # (the clock's seconds, the CPU's seconds) of one new token, and of all.
    best = {name: np.full((2, 2), math.inf) for name in KINDS}
    for turn in range(rounds + 1):
        for name, generator in generators.items():
            for row, count in enumerate((1, new_tokens)):
                start, busy = time.perf_counter(), time.process_time()
                generator.generate([prompt], count)
                if turn:  # the first compiles
                    took = time.perf_counter() - start, time.process_time() - busy
                    best[name][row] = np.minimum(best[name][row], took)
    a_token = {name: (all_of[1] - all_of[0]) / (new_tokens - 1) for name, all_of in best.items()}
    print(f"{path}, {prompt_tokens} tokens of prompt, {new_tokens} new ones")
    print("| | weights | cache | tokens/s | as fast as float32 | by CPU time |\n| --- | --- | --- | --- | --- | --- |")
    for name, (weights, dtype) in KINDS.items():
        held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(models[weights])))
        cache = KVCache.create(config, 1, prompt_tokens + new_tokens, dtype)
        kept = sum(leaf.nbytes for leaf in jax.tree.leaves(cache.layers))
        (wall, cpu), (reference, reference_cpu) = a_token[name], a_token["float32"]
        print(
            f"| {name} | {held / 1e6:.0f} MB | {kept / 1e6:.1f} MB | {1 / wall:.1f} | {reference / wall:.2f} | "
            f"{reference_cpu / cpu:.2f} |"
        )


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", help="a run, for what 8 bits cost on its validation text")
    parser.add_argument("--batches", type=int, default=8, help="batches of validation text")
    parser.add_argument("--speed", type=Path, metavar="MODEL.yaml", help="measure decoding with random weights")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=65)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.run is not None:
        quality(options.run, options.batches)
    if options.speed is not None:
        speed(options.speed, options.prompt_tokens, options.new_tokens, options.rounds)


if __name__ == "__main__":
    main()

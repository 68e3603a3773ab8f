"""Training and decoding speed against Hugging Face Llama in torch: the same shape, float32, taking turns in one run."""

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from stellarbyte_jax.cli import MALLOC_TUNABLES

# 27.8 million parameters.
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 8192, 512, 8, 8, 4, 1408
BATCH, LENGTH = 8, 512
# A turn is long enough that coming back from a pause does not count for much.
STEPS = 4
PROMPT, NEW_TOKENS = 64, 128
DECODE_BATCHES = (1, 8)

Work = Callable[[], float]


def main() -> None:
    """Print tokens/s of both sides, and ours over torch's pair by pair."""
    tasks = ["train", *(f"decode batch {size}" for size in DECODE_BATCHES)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measured turns of each side (default 7)")
    parser.add_argument("--task", choices=tasks, nargs="+", default=tasks, help="what to measure (default: all)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    sides = {"torch": _start(context, _torch_work)}
    os.environ.update(MALLOC_TUNABLES)  # ours runs as `stellarbyte pretrain` does
    sides = {"stellarbyte": _start(context, _jax_work), **sides}

    results = {}
    for task in options.task:
        for side in sides.values():  # compile, and fill the caches
            _ask(side, task)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(1, options.rounds + 1):
            print(f"{task}: round {number} of {options.rounds}", file=sys.stderr, flush=True)
            for name, side in sides.items():
                rates[name].append(_ask(side, task))
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        results[task] = {name: statistics.median(values) for name, values in rates.items()} | {
            "ratio": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
        }
    for side in sides.values():
        side.send(None)
    print(json.dumps(results) if options.json else _table(results))


def _table(results: dict[str, dict[str, float]]) -> str:
    lines = [f"{'tokens/s, median':<18}{'stellarbyte':>12}{'torch':>10}{'ratio':>8}   (min to max)"]
    for task, row in results.items():
        lines.append(
            f"{task:<18}{row['stellarbyte']:>12.1f}{row['torch']:>10.1f}{row['ratio']:>8.2f}"
            f"   ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        )
    return "\n".join(lines)


def _start(context: multiprocessing.context.SpawnContext, work: Callable[[], dict[str, Work]]) -> Connection:
    here, there = context.Pipe()
    context.Process(target=_serve, args=(there, work), daemon=True).start()
    return here


def _ask(side: Connection, task: str) -> float:
    side.send(task)
    return side.recv()


def _serve(connection: Connection, work: Callable[[], dict[str, Work]]) -> None:
    for name in ("torchao", "torch.utils._pytree"):  # which tell of every kernel that is for another machine
        logging.getLogger(name).setLevel(logging.ERROR)
    tasks = work()
    while (task := connection.recv()) is not None:
        connection.send(tasks[task]())


def _rate(tokens: int, run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return tokens / (time.perf_counter() - start)


def _jax_work() -> dict[str, Work]:
    import jax
    import numpy as np
    from flax import nnx

    from stellarbyte_jax.config import ByteConfig, OptimizerConfig
    from stellarbyte_jax.inference.generate import Generator
    from stellarbyte_jax.model.causal_lm import ByteModel
    from stellarbyte_jax.training.optimizer import make_optimizer
    from stellarbyte_jax.training.state import abstract_model, init_state
    from stellarbyte_jax.training.step import make_train_step

    config = ByteConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=FEED_FORWARD,
        tie_word_embeddings=True,
        position_embedding="rope",
    )
    optimizer = make_optimizer(OptimizerConfig(), max_steps=1000)
    step = jax.jit(make_train_step(abstract_model(config)[0], optimizer), donate_argnums=0)
    state = init_state(config, optimizer, seed=0)
    rows = np.random.default_rng(0).integers(3, VOCAB, (BATCH, LENGTH + 1), np.int32)
    batch = {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}

    def train() -> None:
        nonlocal state
        for _ in range(STEPS):
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))

    generator = Generator(ByteModel(config, rngs=nnx.Rngs(0)))

    def decode(size: int) -> Work:
        prompts = np.random.default_rng(0).integers(3, VOCAB, (size, PROMPT)).tolist()
        return lambda: _rate(size * NEW_TOKENS, lambda: generator.generate(prompts, NEW_TOKENS))

    return {"train": lambda: _rate(STEPS * BATCH * LENGTH, train)} | {
        f"decode batch {n}": decode(n) for n in DECODE_BATCHES
    }


def _torch_work() -> dict[str, Work]:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=FEED_FORWARD,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=2,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    rows = torch.from_numpy(np.random.default_rng(0).integers(3, VOCAB, (BATCH, LENGTH)))

    def train() -> None:
        model.train()
        for _ in range(STEPS):
            model(rows, labels=rows, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    def decode(size: int) -> Work:
        prompts = torch.from_numpy(np.random.default_rng(0).integers(3, VOCAB, (size, PROMPT)))

        def generate() -> None:
            model.eval()
            model.generate(prompts, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)

        return lambda: _rate(size * NEW_TOKENS, generate)

    return {"train": lambda: _rate(STEPS * BATCH * LENGTH, train)} | {
        f"decode batch {n}": decode(n) for n in DECODE_BATCHES
    }


if __name__ == "__main__":
    main()

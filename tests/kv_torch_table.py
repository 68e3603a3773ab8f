"""What pruning costs a token in PyTorch: `python -m tests.kv_torch_table MODEL.yaml`.

Of a model with random weights: the CPU time of each token behind a prompt that overflows the budget, with each policy,
beside Transformers' own cache of as many tokens. All take turns.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import DynamicCache

from stellarbyte.kv_cache.registry import POLICIES
from stellarbyte.kv_cache.selection import room
from stellarbyte_torch.configuration_stellarbyte import ByteConfig
from stellarbyte_torch.kv_cache import PrunedCache
from stellarbyte_torch.modeling_stellarbyte import CACHE, ByteForCausalLM


@torch.no_grad()
def steps(model: Any, cache: Any, prompt: int, count: int) -> list[float]:
    """The seconds of CPU time of `count` tokens behind a prompt."""
    token = torch.randint(3, model.config.vocab_size, (1, prompt))
    took = []
    for _ in range(1 + count):
        busy = time.process_time()
        token = model(token, **{CACHE: cache}).logits[:, -1:].argmax(dim=-1)
        took.append(time.process_time() - busy)
    return took[1:]


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.yaml")
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--policies", default=",".join(POLICIES), metavar="LIST")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fields = yaml.safe_load(options.model.read_text(encoding="utf-8"))
    config = ByteConfig(**(fields | {"max_position_embeddings": 4 * options.slots, "xpos_scale_base": 4096.0}))
    model, count = ByteForCausalLM(config).eval(), 2 * room(options.slots)  # each policy prunes twice
    names = ["full", *options.policies.split(",")]
    rounds: dict[str, list[list[float]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            cache = DynamicCache(config=config) if name == "full" else PrunedCache(model, options.slots, name)
            # A budget is full after each pruning but for what that sets free; the other cache fills it up.
            prompt = options.slots - count if name == "full" else options.slots + 1
            rounds[name].append(steps(model, cache, prompt, count))
    full = np.array(rounds["full"])
    print(f"{options.model}, {options.slots} slots, {count} steps")
    print("| | CPU ms a token | ms where it prunes | pruning costs | in the median round |")
    print("| --- | --- | --- | --- | --- |")
    for name in names:
        took = np.array(rounds[name])
        least = took.min(axis=0)
        cost = median = ""
        if name != "full":
            cost = f"{least.mean() / full.min(axis=0).mean() - 1:+.1%}"
            median = f"{np.median(took.mean(axis=1) / full.mean(axis=1)) - 1:+.1%}"
        print(f"| {name} | {1e3 * least.mean():.2f} | {1e3 * least.max():.1f} | {cost} | {median} |")


if __name__ == "__main__":
    main()

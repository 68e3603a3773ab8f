"""What int8 by torchao saves and costs in generating text in PyTorch: `python -m tests.torchao_table MODEL.yaml`.

The model has random weights. Memory is that of its weights while it runs; speeds are the best of several rounds in
which the kinds take turns, by the clock and by the CPU's time.
"""

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from stellarbyte_torch import ByteConfig, ByteForCausalLM
from stellarbyte_torch.library_words import hear_libraries
from stellarbyte_torch.model_folder import load_model
from stellarbyte_torch.torchao_settings import Int8

KINDS: dict[str, Int8 | None] = {"float32": None, "int8": "int8", "int8-dynamic": "int8-dynamic"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.yaml")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=33)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    hear_libraries("torchao_table")
    torch.manual_seed(0)
    config = ByteConfig(**yaml.safe_load(options.model.read_text(encoding="utf-8")))
    with tempfile.TemporaryDirectory() as folder:
        ByteForCausalLM(config).save_pretrained(folder)
        models = {name: load_model(Path(folder), "cpu", quantize=kind) for name, kind in KINDS.items()}
    prompt = torch.randint(3, config.vocab_size, (1, options.prompt_tokens))
    # (the clock's seconds, the CPU's seconds) until the first new token, and until the last.
    best = {name: np.full((2, 2), math.inf) for name in KINDS}
    for turn in range(options.rounds + 1):
        for name, model in models.items():
            for row, count in enumerate((1, options.new_tokens)):
                start, busy = time.perf_counter(), time.process_time()
                _generate(model, prompt, count)
                if turn:  # the first warms up
                    took = time.perf_counter() - start, time.process_time() - busy
                    best[name][row] = np.minimum(best[name][row], took)
    print("| | weights | tokens/s | as fast as float32 | by CPU time |\n| --- | --- | --- | --- | --- |")
    a_token = {name: (last - first) / (options.new_tokens - 1) for name, (first, last) in best.items()}
    for name, (wall, cpu) in a_token.items():
        reference, reference_cpu = a_token["float32"]
        cells = (f"{_held(models[name]) / 1e6:.0f} MB", f"{1 / wall:.1f}")
        print(f"| {name} | {' | '.join(cells)} | {reference / wall:.2f} | {reference_cpu / cpu:.2f} |")


@torch.no_grad()
def _generate(model: Any, prompt: Tensor, count: int) -> None:
    model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)


def _held(model: torch.nn.Module) -> int:
    """Bytes of the weights; those of an int8 weight are its codes' and its scales'."""
    plain = {part.data_ptr(): part.nbytes for weight in model.state_dict().values() for part in _parts(weight)}
    return sum(plain.values())


def _parts(tensor: Any) -> list[Tensor]:
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


if __name__ == "__main__":
    main()

"""The memory that `stellarbyte report` tells beside what compilers and processes take, as a Markdown table.

Run it as `python -m tests.report_memory_table [WORD …]`; words choose rows by their names. Where libtpu is installed
(extra tpu), train steps are compiled for one v5e chip, which takes a minute or so each.
"""

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stellarbyte.report.find import find_subject
from stellarbyte.report.memory import cache_bytes, count_memory, prefill_bytes
from stellarbyte.report.parameters import count_parameters
from stellarbyte.report.structure import structure_of
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.config_file import load_model_config, save_config, to_dict
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.planning.auto_remat import with_remat
from stellarbyte_jax.planning.compile_ahead import compile_ahead, compile_here
from stellarbyte_jax.planning.one_device import _Device, _on_one_device, foresee
from stellarbyte_jax.planning.topology import parse_topology
from stellarbyte_torch import ByteConfig as TorchConfig
from stellarbyte_torch import ByteForCausalLM

SMALL: dict[str, Any] = {
    **{"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
    **{"num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 2048},
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 1024, "num_hidden_layers": 6}
WIDE_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
SWITCHES = {"sliding_window": 512, "layer_scale_init": 0.1}
# Model's fields, rows of 2048 tokens, remat, and a chip.
STEPS: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "train step, none": ({}, 8, "none", "v5e"),
    "train step, 4 rows, none": ({}, 4, "none", "v5e"),
    "train step, dots": ({}, 16, "dots", "v5e"),
    "train step, 4 rows, dots": ({}, 4, "dots", "v5e"),
    "train step, dots_without_batch": ({}, 8, "dots_without_batch", "v5e"),
    "train step, save_attention": ({}, 16, "save_attention", "v5e"),
    "train step, 32 rows, save_attention": ({}, 32, "save_attention", "v5e"),
    "train step, full": ({}, 16, "full", "v5e"),
    "train step, 32 rows, full": ({}, 32, "full", "v5e"),
    "train step, offload": ({}, 16, "offload", "v5e"),
    "train step, heads of 128, none": (WIDE_HEADS, 8, "none", "v5e"),
    "train step, heads of 128, dots": (WIDE_HEADS, 8, "dots", "v5e"),
    "train step, heads of 128, save_attention": (WIDE_HEADS, 16, "save_attention", "v5e"),
    "train step, heads of 128, full": (WIDE_HEADS, 16, "full", "v5e"),
    "train step, no groups, dots": ({"num_key_value_heads": 12}, 8, "dots", "v5e"),
    "train step, no groups, full": ({"num_key_value_heads": 12}, 8, "full", "v5e"),
    "train step, window 512, LayerScale, none": (SWITCHES, 8, "none", "v5e"),
    "train step, window 512, LayerScale, dots": (SWITCHES, 8, "dots", "v5e"),
    "train step, window 512, LayerScale, full": (SWITCHES, 16, "full", "v5e"),
    "train step, 2 of 8 experts, none": (EXPERTS, 8, "none", "v5e"),
    "train step, 2 of 8 experts, dots": (EXPERTS, 8, "dots", "v5e"),
    "train step, 2 of 8 experts, save_attention": (EXPERTS, 8, "save_attention", "v5e"),
    "train step, 2 of 8 experts, full": (EXPERTS, 8, "full", "v5e"),
    "train step, deepnorm, save_attention": ({"residual": "deepnorm"}, 16, "save_attention", "v5e"),
    "train step, v6e, none": ({}, 8, "none", "v6e"),
    "train step, v6e, dots": ({}, 8, "dots", "v6e"),
    "train step, v6e, full": ({}, 16, "full", "v6e"),
}
# Of a train step on a CPU: the file of a model, rows, their length, remat.
HERE: dict[str, tuple[str, int, int, str]] = {
    "train step on a CPU, none": ("30m", 4, 512, "none"),
    "train step on a CPU, dots": ("30m", 4, 512, "dots"),
    "train step on a CPU, 16 rows, full": ("30m", 16, 512, "full"),
    "train step on a CPU, rows of 1024, none": ("30m", 4, 1024, "none"),
    "train step on a CPU, small, none": ("tiny", 8, 256, "none"),
    "train step on a CPU, small, experts, full": ("tiny_moe", 8, 256, "full"),
}
# Prints the peak of a process that has trained three steps, less what it took before it made its state.
_STEPS = """
import json, sys, jax, numpy as np
from pathlib import Path
from stellarbyte_jax.config_file import run_config_from_dict
from stellarbyte_jax.planning.program import abstract_batch
from stellarbyte_jax.sharding import Layout, make_mesh
from stellarbyte_jax.training.optimizer import run_optimizer
from stellarbyte_jax.training.start import placed, state_shardings
from stellarbyte_jax.training.state import run_model, run_state
from stellarbyte_jax.training.step import on_mesh, run_train_step
def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
run = run_config_from_dict(json.loads(sys.argv[1]), "the table")
layout = Layout.of(run.mesh, make_mesh(run.mesh, jax.devices()[:1]))
graphdef, params = run_model(run, layout, "cpu")
optimizer = run_optimizer(run, params, layout)
shardings, frozen = state_shardings(run, params, optimizer, layout)
step = on_mesh(run_train_step(run, graphdef, optimizer, None, None), layout, shardings, frozen, {})
state = placed(jax.eval_shape(lambda: run_state(run, optimizer)), shardings)
batch = abstract_batch(run.training.batch_size, run.data.sequence_length, layout.sharding("batch", "length"))
compiled = step.trace(state, batch, {}, {}).lower().compile()
before = status("VmRSS")
state = jax.tree.map(lambda array: jax.numpy.zeros(array.shape, array.dtype), state)
batch = {name: jax.numpy.asarray(np.ones(array.shape, np.int32)) for name, array in batch.items()}
for _ in range(3):
    state, _ = compiled(state, batch, {}, {})
jax.block_until_ready(state)
print(status("VmHWM") - before)
"""
# Prints the peak of a process that has read a prompt, less what it took with its libraries alone.
_PROMPT = """
import sys, torch, transformers
from pathlib import Path
import stellarbyte_torch
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
small = stellarbyte_torch.ByteForCausalLM(stellarbyte_torch.ByteConfig(vocab_size=64, hidden_size=64,
    intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)).eval()
with torch.inference_mode():
    small.generate(torch.ones((1, 8), dtype=torch.long), max_new_tokens=2, do_sample=False)
    before = peak()
    model = stellarbyte_torch.ByteForCausalLM(stellarbyte_torch.ByteConfig(**eval(sys.argv[1]))).eval()
    model(torch.ones((int(sys.argv[2]), int(sys.argv[3])), dtype=torch.long), use_cache=True, logits_to_keep=1)
print(peak() - before)
"""


def told(config: ByteConfig) -> Any:
    """(structure, memory) by the report."""
    with tempfile.TemporaryDirectory() as folder:
        save_config(config, Path(folder) / "model.yaml")
        subject = find_subject(Path(folder) / "model.yaml")
    structure = structure_of(subject)
    foreseen = foresee(config, None, 1, 128)
    return structure, count_memory(subject, structure, count_parameters(subject), foreseen)


def step_of(fields: dict[str, Any], rows: int, remat: str, chip: str) -> tuple[int, int]:
    """The peak of a train step on one TPU: foreseen, and compiled."""
    config = _on_one_device(ByteConfig(**SMALL | fields), None, rows, 2048)
    run = with_remat(config, remat)
    return _Device(run, "tpu").memory(remat, rows).total, compile_ahead(run, parse_topology(f"{chip}:1x1")).peak


def step_here(model: str, rows: int, length: int, remat: str) -> tuple[int, int]:
    """A train step on one CPU: by `stellarbyte plan --topology cpu`, and the peak of a process, less its libraries."""
    config = with_remat(_on_one_device(load_model_config(f"configs/model/{model}.yaml"), None, rows, length), remat)
    run = dataclasses.replace(config, training=dataclasses.replace(config.training, dtype="float32"))
    command = [sys.executable, "-c", _STEPS, json.dumps(to_dict(run))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return compile_here(run).total, int(done.stdout)


def jax_cache(dtype: str, **fields: Any) -> tuple[int, int]:
    """A cache of 1,000 tokens in JAX."""
    config = ByteConfig(**SMALL | fields)
    cache = jax.eval_shape(lambda: KVCache.create(config, 1, 1000, jnp.dtype(dtype)))
    bytes_held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache.layers))
    return cache_bytes(told(config)[0], dtype, 1000), bytes_held


def torch_cache() -> tuple[int, int]:
    """A cache of 200 tokens in PyTorch."""
    config = load_model_config("configs/model/30m.yaml")
    model = ByteForCausalLM(TorchConfig(**dataclasses.asdict(config))).eval()
    with torch.no_grad():
        cache = model(torch.ones((1, 200), dtype=torch.long), use_cache=True).past_key_values
    held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    return cache_bytes(told(config)[0], "float32", 200), held


def torch_state() -> tuple[int, int]:
    """Weights, gradients and AdamW's moments in PyTorch, after a step."""
    config = load_model_config("configs/model/30m.yaml")
    model = ByteForCausalLM(TorchConfig(**dataclasses.asdict(config)))
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.ones((1, 8), dtype=torch.long)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
    tensors += [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    return sum(told(config)[1].state.values()), sum(x.numel() * x.element_size() for x in tensors)


class _Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most so far."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata)
        self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key, 0)


def alive(rows: int, tokens: int, **fields: Any) -> tuple[int, int]:
    """All tensors of PyTorch that are alive at the fullest moment while prompts are read, weights included."""
    config = ByteConfig(**SMALL | fields)
    structure, memory = told(config)
    model = ByteForCausalLM(TorchConfig(**SMALL | fields)).eval()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    with _Alive() as counter, torch.inference_mode():
        model(torch.ones((rows, tokens), dtype=torch.long), use_cache=True, logits_to_keep=1)
    a_row = cache_bytes(structure, "float32", tokens) + prefill_bytes(structure, "float32", tokens)
    return memory.weights["float32"] + rows * a_row, weights + counter.most


def prompt(rows: int, tokens: int, *, mapped: bool) -> tuple[int, int]:
    """The peak of a process that reads prompts in PyTorch, in float32, less its libraries.

    mapped: whether glibc gives every large block back when it is freed, instead of keeping those below 32 MiB.
    """
    structure, memory = told(ByteConfig(**SMALL))
    foreseen = memory.weights["float32"] + rows * (
        cache_bytes(structure, "float32", tokens) + prefill_bytes(structure, "float32", tokens)
    )
    command = [*(["env", "MALLOC_MMAP_THRESHOLD_=1048576"] if mapped else []), sys.executable, "-c", _PROMPT]
    command += [repr(SMALL), str(rows), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return foreseen, int(done.stdout)


ROWS: dict[str, Callable[[], tuple[int, int]]] = {
    "keys and values in JAX, bfloat16": lambda: jax_cache("bfloat16"),
    "keys and values in JAX, int8": lambda: jax_cache("int8"),
    "keys and values in JAX, window 512": lambda: jax_cache("float32", sliding_window=512),
    "keys and values in PyTorch": torch_cache,
    "weights, gradients, AdamW in PyTorch": torch_state,
    "prompts of 4 x 1024 in PyTorch, tensors alive": lambda: alive(4, 1024),
    "prompts of 2 x 2048 in PyTorch, tensors alive": lambda: alive(2, 2048, intermediate_size=1024),
    "prompts of 8 x 2048 in PyTorch, the whole process": lambda: prompt(8, 2048, mapped=False),
    "prompts of 8 x 2048 in PyTorch, freed blocks given back": lambda: prompt(8, 2048, mapped=True),
    **{name: lambda step=step: step_here(*step) for name, step in HERE.items()},  # type: ignore[misc]
}


def main(words: list[str]) -> None:
    """Prints the table, a line as soon as it is known."""
    rows = dict(ROWS)
    if importlib.util.find_spec("libtpu") is not None:
        rows |= {name: lambda step=step: step_of(*step) for name, step in STEPS.items()}  # type: ignore[misc]
    print("| what | told, MiB | measured, MiB | error |\n| --- | --- | --- | --- |", flush=True)
    for name, measure in rows.items():
        if not words or any(word in name for word in words):
            foreseen, found = measure()
            figures = f"{foreseen / 2**20:.1f} | {found / 2**20:.1f} | {foreseen / found - 1:+.1%}"
            print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""Splits the tree of a model's parameters into base and adapters, joins both again, or merges them."""

from typing import Any

import numpy as np

from stellarbyte_jax.lora_config import LoRAConfig

Tree = dict[str, Any]

# The names of an adapter's two arrays, beside the kernel of the module that it adapts.
ADAPTER_LEAVES = ("lora_A", "lora_B")


def split_adapters(tree: Tree) -> tuple[Tree, Tree]:
    """(everything but the adapters, the adapters) of a model's parameters, or of a tree like them."""
    base: Tree = {}
    adapters: Tree = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            for side, part in zip((base, adapters), split_adapters(value), strict=True):
                if part:
                    side[name] = part
        else:
            (adapters if name in ADAPTER_LEAVES else base)[name] = value
    return base, adapters


def join(base: Tree | None, adapters: Tree) -> Tree:
    """The inverse of `split_adapters`; without a base, the adapters as they are."""
    if not base:
        return adapters
    joined = dict(base)
    for name, value in adapters.items():
        joined[name] = join(base[name], value) if name in base else value
    return joined


def merge_adapters(base: Tree, adapters: Tree, config: LoRAConfig) -> Tree:
    """The parameters, as numpy arrays, of the model that base and adapters make together: W + A B · scaling."""
    return _merge(base, adapters, config, "")


def _merge(base: Tree, adapters: Tree, config: LoRAConfig, name: str) -> Tree:
    merged = dict(base)
    for child, part in adapters.items():
        if child not in ADAPTER_LEAVES:
            merged[child] = _merge(base[child], part, config, f"{name}.{child}" if name else child)
    if "lora_A" in adapters:
        A_LDR, B_LRF = (np.asarray(adapters[leaf], np.float32) for leaf in ADAPTER_LEAVES)
        merged["kernel"] = base["kernel"] + np.float32(config.scaling(name)) * (A_LDR @ B_LRF)
    return merged

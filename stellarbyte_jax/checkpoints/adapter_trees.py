"""Splits the tree of a model's parameters into base and adapters, joins both again, or merges them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte_jax.lora_config import ALL_LINEAR, LoRAConfig

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


def check_adapters(adapters: Tree, config: LoRAConfig, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Refuses adapters that do not fit their config and their base.

    shapes: dotted name of each module in a layer -> shape of the base's kernel, [L, D, F]. It may hold kernels that
        cannot be adapted, such as a router's.

    Raises:
        UserError: a module has an adapter that it should not have, lacks one, or has one of another rank or shape.
    """
    found = dict(_adapters(adapters.get("model", {}).get("layers", {})))
    for name, leaves in found.items():
        if name not in shapes or not config.adapts(name):
            raise UserError(
                f"{where} holds an adapter of {name}, which its `lora` does not name: take a run's own checkpoint"
            )
        L, D, F = shapes[name]
        rank = config.rank(name)
        expected = {"lora_A": (L, D, rank), "lora_B": (L, rank, F)}
        for leaf in ADAPTER_LEAVES:
            shape = tuple(np.shape(leaves[leaf])) if leaf in leaves else None
            if shape != expected[leaf]:
                has = "no array" if shape is None else f"one of shape {list(shape)}"
                raise UserError(
                    f"{where} holds {has} as {leaf} of {name}, where its `lora` and its base have one of shape "
                    f"{list(expected[leaf])}: take a run's own checkpoint"
                )
    wanted = {name for name in shapes if config.adapts(name)} if config.target_modules != ALL_LINEAR else set()
    for name in sorted(wanted - found.keys()):
        raise UserError(f"{where} holds no adapter of {name}, which its `lora` names: take a run's own checkpoint")
    if not found:
        raise UserError(f"{where} holds no adapters at all, where its config has `lora`: take a run's own checkpoint")


def kernel_shapes(base: Tree) -> dict[str, tuple[int, ...]]:
    """The shape of each kernel [L, D, F] in a model's layers, by the dotted name of its module."""
    found = _modules(base.get("model", {}).get("layers", {}), "kernel", "")
    return {name: np.shape(leaves["kernel"]) for name, leaves in found if np.ndim(leaves["kernel"]) == 3}


def _adapters(tree: Tree) -> Iterator[tuple[str, Tree]]:
    seen = set()
    for leaf in ADAPTER_LEAVES:
        for name, leaves in _modules(tree, leaf, ""):
            if name not in seen:
                yield name, leaves
            seen.add(name)


def _modules(tree: Tree, leaf: str, name: str) -> Iterator[tuple[str, Tree]]:
    """(dotted name, its arrays) of each module that has an array called `leaf`."""
    if leaf in tree:
        yield name, tree
    for child, part in tree.items():
        if isinstance(part, dict):
            yield from _modules(part, leaf, f"{name}.{child}" if name else child)


def merge_adapters(base: Tree, adapters: Tree, config: LoRAConfig) -> Tree:
    """The parameters of the model that base and adapters make together: W + A B · scaling, in MergedKernels.

    The arrays may be numpy's, or others of which `array[layer]` is a numpy array.
    """
    return _merge(base, adapters, config, "")


def _merge(base: Tree, adapters: Tree, config: LoRAConfig, name: str) -> Tree:
    merged = dict(base)
    for child, part in adapters.items():
        if child not in ADAPTER_LEAVES:
            merged[child] = _merge(base[child], part, config, f"{name}.{child}" if name else child)
    if "lora_A" in adapters:
        merged["kernel"] = MergedKernel(base["kernel"], adapters["lora_A"], adapters["lora_B"], config.scaling(name))
    return merged


class MergedKernel:
    """The kernels [L, D, F] of a module in all layers, each merged with its adapter when it is asked for."""

    def __init__(self, kernel_LDF: Any, A_LDR: Any, B_LRF: Any, scaling: float) -> None:
        self._kernel_LDF, self._A_LDR, self._B_LRF, self._scaling = kernel_LDF, A_LDR, B_LRF, np.float32(scaling)
        self.shape: tuple[int, ...] = np.shape(kernel_LDF)
        self.dtype: np.dtype = np.result_type(kernel_LDF.dtype, np.float32)

    def __getitem__(self, layer: int) -> np.ndarray:
        A_DR, B_RF = (np.asarray(array[layer], np.float32) for array in (self._A_LDR, self._B_LRF))
        merged_DF: np.ndarray = self._kernel_LDF[layer] + self._scaling * (A_DR @ B_RF)
        return merged_DF

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        del copy  # every call makes one
        return np.stack([self[layer] for layer in range(self.shape[0])]).astype(dtype or self.dtype, copy=False)

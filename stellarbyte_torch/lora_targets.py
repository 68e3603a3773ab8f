"""What of a model a LoRAConfig adapts and what it trains whole, checked against the modules that are there."""

import copy
import re
from typing import Any

from peft.tuners.lora import LoraLayer, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from stellarbyte.errors import UserError
from stellarbyte_torch.lora_config import FREEZING, LoRAConfig, layer_numbers

ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def resolve(config: LoRAConfig, model: nn.Module) -> LoRAConfig:
    """A copy of the config in PEFT's own fields, every name in it checked against the model.

    Raises UserError: a target, a parameter or a layer that is not there.
    """
    config = copy.deepcopy(config)
    whole = trained_whole(config, model)
    for field in FREEZING:
        setattr(config, field, None if field == "train_layers" else False)
    if whole:
        config.modules_to_save = sorted({*(config.modules_to_save or []), *whole})
        ends = (_embeddings(model), _head(model))
        tied = {name for name, module in _base_modules(model).items() if module in ends}
        config.ensure_weight_tying = config.ensure_weight_tying or (is_tied(model) and not tied.isdisjoint(whole))
    _check_targets(config, model)
    return config


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's LoRA layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def is_tied(model: nn.Module) -> bool:
    """Whether the head is the embedding matrix."""
    embeddings, head = _embeddings(model), _head(model)
    return head is not None and embeddings is not None and head.weight is embeddings.weight


def _embeddings(model: Any) -> nn.Module | None:
    return _unwrapped(model.get_input_embeddings()) if hasattr(model, "get_input_embeddings") else None


def _head(model: Any) -> nn.Module | None:
    return _unwrapped(model.get_output_embeddings()) if hasattr(model, "get_output_embeddings") else None


def _unwrapped(module: Any) -> Any:
    """The base's module inside PEFT's layer or wrapper."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _base_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The model's modules by the names they had before any adapter."""
    modules: dict[str, nn.Module] = {}
    wrapped: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(wrapped):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            wrapped += (f"{name}.",)
        modules[name] = _unwrapped(module)
    return modules


def _layer_of(name: str) -> int | None:
    """The number of the layer that a module is in: the first number in its name, as PEFT counts."""
    match = re.search(r"\.(\d+)(?:\.|$)", name)
    return int(match[1]) if match else None


def trained_whole(config: LoRAConfig, model: nn.Module) -> set[str]:
    """Names of the modules that the freezing fields train, each of which holds parameters of its own.

    Raises UserError: a layer or a kind of module that is not there.
    """
    modules = {n: m for n, m in _base_modules(model).items() if any(True for _ in m.parameters(recurse=False))}
    whole: set[str] = set()
    for field, module in (("train_embeddings", _embeddings(model)), ("train_head", _head(model))):
        if getattr(config, field):
            names = [name for name, candidate in modules.items() if candidate is module]
            if not names:
                raise UserError(f"{field} is true, and {type(model).__name__} has no such module: set it to false")
            whole.update(names)
    if config.train_norms:
        norms = [name for name, module in modules.items() if "norm" in type(module).__name__.lower()]
        if not norms:
            raise UserError(
                f"train_norms is true, and {type(model).__name__} has no norms with weights: set it to false"
            )
        whole.update(norms)
    if config.train_layers:
        layers = layer_numbers(config.train_layers, "train_layers")
        _check_layers(layers, "train_layers", modules)
        whole.update(name for name in modules if _layer_of(name) in layers)
    return whole


def _check_layers(layers: list[int], field: str, modules: dict[str, nn.Module]) -> None:
    present = {layer for name in modules if (layer := _layer_of(name)) is not None}
    for layer in layers:
        if layer not in present:
            there = f"layers {min(present)} to {max(present)}" if present else "no numbered layers"
            raise UserError(f"{field} names layer {layer}, and the model has {there}: choose from these")


def _check_targets(config: LoRAConfig, model: nn.Module) -> None:
    modules = _base_modules(model)
    adaptable = {name: module for name, module in modules.items() if isinstance(module, ADAPTABLE)}
    there = ", ".join(sorted({name.rpartition(".")[2] for name in adaptable})) or "nothing that LoRA adapts"
    stacks = {
        f"{name}.{parameter}": value.ndim
        for name, module in modules.items()
        for parameter, value in module.named_parameters(recurse=False)
    }
    for target in config.target_parameters or []:
        if not any(name == target or name.endswith(f".{target}") for name in stacks):
            stacked = sorted({".".join(name.split(".")[-2:]) for name, ndim in stacks.items() if ndim == 3})
            raise UserError(
                f"target_parameters has {target!r}, which matches no parameter: "
                f"the model's stacked ones are {', '.join(stacked) or 'none'}"
            )
    if isinstance(config.layers_to_transform, list):
        _check_layers(config.layers_to_transform, "layers", modules)

    targets = config.target_modules
    if targets is None or targets == "all-linear":
        known = getattr(getattr(model, "config", None), "model_type", None) in LoraModel.target_module_mapping
        if targets is None and not known and not config.target_parameters:
            raise UserError(f"target_modules is not set, and this model has no default: choose from {there}")
        return
    if isinstance(targets, str):
        if not any(LoraModel._check_target_module_exists(config, name) for name in modules):
            raise UserError(f"target_modules {targets!r} matches no module: the model has {there}")
        return
    for target in sorted(targets):
        if not any(name == target or name.endswith(f".{target}") for name in modules):
            raise UserError(f"target_modules has {target!r}, which matches no module: the model has {there}")
    if targets and not any(LoraModel._check_target_module_exists(config, name) for name in modules):
        raise UserError(
            f"target_modules {sorted(targets)} match no module once layers, exclude_modules and what trains whole "
            f"are taken out: the model has {there}"
        )

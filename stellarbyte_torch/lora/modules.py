"""Finds a model's modules by the names that they have without adapters, and PEFT's layers on them."""

import re
from typing import Any

from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's LoRA layers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def adapted_layers(base: nn.Module, adapter_name: str) -> dict[str, Any]:
    """An adapter's LoRA layers, by the names that its patterns are matched against: a module's or a parameter's."""
    layers = {name: layer for name, layer in lora_layers(base).items() if adapter_name in layer.r}
    return {
        f"{name.replace('.base_layer', '')}.{layer.parameter_name}" if isinstance(layer, ParamWrapper) else name: layer
        for name, layer in layers.items()
    }


def base_modules(model: nn.Module) -> dict[str, nn.Module]:
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


def base_parameters(modules: dict[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters of `base_modules` by name."""
    return {
        f"{name}.{parameter}" if name else parameter: value
        for name, module in modules.items()
        for parameter, value in module.named_parameters(recurse=False)
    }


def is_tied(model: nn.Module) -> bool:
    """Whether the head is the embedding matrix."""
    embeddings, head = input_embeddings(model), output_head(model)
    return head is not None and embeddings is not None and head.weight is embeddings.weight


def input_embeddings(model: Any) -> nn.Module | None:
    """The base's embeddings."""
    return _unwrapped(model.get_input_embeddings()) if hasattr(model, "get_input_embeddings") else None


def output_head(model: Any) -> nn.Module | None:
    """The base's head."""
    return _unwrapped(model.get_output_embeddings()) if hasattr(model, "get_output_embeddings") else None


def layer_of(name: str) -> int | None:
    """The number of a module's layer, which is the first number in its name, as in PEFT; None if it has none."""
    match = re.search(r"\.(\d+)(?:\.|$)", name)
    return int(match[1]) if match else None


def is_called(name: str, target: str) -> bool:
    """Whether `target` is a module's name or its last dotted parts; PEFT matches the names in a list so."""
    return name == target or name.endswith(f".{target}")


def _unwrapped(module: Any) -> Any:
    """The base's own module, if `module` is PEFT's layer or wrapper around it."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return module.original_module
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module

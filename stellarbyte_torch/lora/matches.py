"""Checks every name in a LoRAConfig against the model; one that matches nothing is refused, with the nearest match."""

import difflib
import re
from collections.abc import Iterable
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from stellarbyte.errors import UserError, shown
from stellarbyte.patterns import check_patterns
from stellarbyte_torch.lora.config import LoRAConfig
from stellarbyte_torch.lora.fields import expressions
from stellarbyte_torch.lora.modules import (
    adapted_layers,
    base_modules,
    base_parameters,
    input_embeddings,
    is_called,
    layer_of,
)

ADAPTABLE = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)


def check_names(config: LoRAConfig, model: nn.Module, *, is_saved: bool) -> None:
    """Raises UserError if the model lacks a name or a layer, or if a regular expression is too slow on its names.

    is_saved: as in `targets.resolve`.
    """
    modules = base_modules(model)
    parameters = base_parameters(modules)
    check_patterns(expressions(config), [*modules, *parameters])
    _check_whole(config, list(modules), is_saved=is_saved)
    _check_parameters(config, parameters)
    _check_tokens(config, model, modules)
    for field, layers in (("layers", config.narrowed_to), ("layers_to_transform", config.layers_to_transform)):
        if layers is not None:
            check_layers([layers] if isinstance(layers, int) else layers, field, modules)
    if not is_saved:
        _check_excluded(config, modules)
    _check_targets(config, model, modules)


def check_layers(layers: list[int], field: str, modules: Iterable[str]) -> None:
    """Raises UserError if a layer has no module."""
    present = {layer for name in modules if (layer := layer_of(name)) is not None}
    for layer in layers:
        if layer not in present:
            there = f"layers {min(present)} to {max(present)}" if present else "no numbered layers"
            raise UserError(f"{field} names layer {layer}, and the model has {there}: choose from these")


def settle_patterns(model: PeftModel, adapter_name: str, *, is_saved: bool) -> None:
    """Rewrites an adapter's rank_pattern and alpha_pattern so that they mean the same in any order.

    PEFT uses the first key that fits, and sorts the keys when it saves. If two keys with different values fit one
    module, every module is named in full instead. Raises UserError if a key fits nothing that is adapted.
    """
    config: Any = model.peft_config[adapter_name]
    adapted = list(adapted_layers(model.get_base_model(), adapter_name))
    for field in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, field) or {}
        fitting = {
            name: [key for key in patterns if re.match(rf"(.*\.)?({key})$", name)] for name in adapted if patterns
        }
        for key in patterns if not is_saved else ():
            if not any(key in keys for keys in fitting.values()):
                raise UserError(f"{field} has {shown(key)}, which fits nothing that is adapted{_nearest(key, adapted)}")
        if any(len({patterns[key] for key in keys}) > 1 for keys in fitting.values()):
            exact = {f"^{re.escape(name)}": patterns[keys[0]] for name, keys in fitting.items() if keys}
            setattr(config, field, exact)


def _check_whole(config: LoRAConfig, names: list[str], *, is_saved: bool) -> None:
    for target in list(config.modules_to_save or ()):
        if any(name.endswith(target) for name in names):
            continue
        if not is_saved:
            raise UserError(f"modules_to_save has {shown(target)}, which matches no module{_nearest(target, names)}")
        # PEFT would ignore it as well, but only after matching it as an expression, and a stranger's may run for ever.
        config.modules_to_save = [name for name in config.modules_to_save or () if name != target] or None


def _check_parameters(config: LoRAConfig, parameters: dict[str, nn.Parameter]) -> None:
    for target in config.target_parameters or []:
        if not any(is_called(name, target) for name in parameters):
            stacked = sorted({".".join(name.split(".")[-2:]) for name, value in parameters.items() if value.ndim == 3})
            raise UserError(
                f"target_parameters has {target!r}, which matches no parameter: "
                f"the model's stacked ones are {', '.join(stacked) or 'none'}"
            )


def _check_tokens(config: LoRAConfig, model: nn.Module, modules: dict[str, nn.Module]) -> None:
    indices = config.trainable_token_indices
    if indices is None:
        return
    for target, numbers in indices.items() if isinstance(indices, dict) else [(None, indices)]:
        found = [module for name, module in modules.items() if target is not None and name.endswith(target)]
        if target is not None and not found:
            raise UserError(
                f"trainable_token_indices has {shown(target)}, which matches no module{_nearest(target, modules)}"
            )
        weight = getattr(found[0] if found else input_embeddings(model), "weight", None)
        if weight is None:
            raise UserError(
                "trainable_token_indices needs embeddings, and this model has none of its own: leave it out"
            )
        if max(numbers) >= len(weight):
            raise UserError(
                f"trainable_token_indices names token {max(numbers)}, and there are tokens 0 to {len(weight) - 1}"
            )


def _check_excluded(config: LoRAConfig, modules: dict[str, nn.Module]) -> None:
    excluded = config.exclude_modules or []
    names = [*modules, *base_parameters(modules)]
    if isinstance(excluded, str):
        if not any(re.fullmatch(excluded, name) for name in names):
            raise UserError(f"exclude_modules {shown(excluded)} matches no module: leave it out, or write another")
        return
    for target in sorted(excluded):
        if not any(is_called(name, target) for name in names):
            raise UserError(f"exclude_modules has {shown(target)}, which matches no module{_nearest(target, modules)}")


def _check_targets(config: LoRAConfig, model: nn.Module, modules: dict[str, nn.Module]) -> None:
    adaptable = {name for name, module in modules.items() if isinstance(module, ADAPTABLE)}
    there = ", ".join(sorted({name.rpartition(".")[2] for name in adaptable})) or "nothing that LoRA adapts"
    targets = config.target_modules
    if targets is None or targets == "all-linear":
        known = getattr(getattr(model, "config", None), "model_type", None) in LoraModel.target_module_mapping
        if targets is None and not known and not config.target_parameters:
            raise UserError(f"target_modules is not set, and this model has no default: choose from {there}")
        return
    if not targets and not config.target_parameters:
        raise UserError(f"target_modules is empty: choose from {there}")
    if isinstance(targets, str):
        if not any(LoraModel._check_target_module_exists(config, name) for name in modules):
            raise UserError(f"target_modules {shown(targets)} matches no module: the model has {there}")
        return
    for target in sorted(targets):
        if not any(is_called(name, target) for name in modules):
            near = _nearest(target, adaptable)
            raise UserError(f"target_modules has {shown(target)}, which matches no module: the model has {there}{near}")
    if targets and not any(LoraModel._check_target_module_exists(config, name) for name in modules):
        raise UserError(
            f"target_modules {sorted(targets)} match no module once layers, exclude_modules and what trains whole "
            f"are taken out: the model has {there}"
        )


def _nearest(name: str, names: Iterable[str]) -> str:
    """The advice after an unknown name: the nearest name that exists, cut to as many dotted parts."""
    words = len(name.split("."))
    near = difflib.get_close_matches(name, {".".join(n.split(".")[-words:]) for n in names}, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ": leave it out, or name one that is there"

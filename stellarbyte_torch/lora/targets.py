"""Translates a LoRAConfig into PEFT's own fields: the modules it adapts and those it trains whole."""

import copy
import re

from torch import nn

from stellarbyte.errors import UserError
from stellarbyte.layer_ranges import layer_numbers
from stellarbyte_torch.lora.config import FREEZING, LoRAConfig
from stellarbyte_torch.lora.matches import check_layers, check_names
from stellarbyte_torch.lora.modules import (
    base_modules,
    base_parameters,
    input_embeddings,
    is_called,
    is_tied,
    layer_of,
    output_head,
)


def resolve(config: LoRAConfig, model: nn.Module, *, is_saved: bool = False) -> LoRAConfig:
    """A copy of the config in PEFT's own fields, with every name in it checked against the model.

    is_saved: whether the config belongs to a trained adapter, which is on everything that PEFT found by it. It is then
    not narrowed further, and modules_to_save, exclude_modules and patterns may name what is not there. Raises UserError
    if the model lacks any other name, or a layer.
    """
    config = copy.deepcopy(config)
    whole = trained_whole(config, model)
    for field in FREEZING:
        setattr(config, field, None if field == "train_layers" else False)
    if whole:
        config.modules_to_save = sorted({*(config.modules_to_save or []), *whole})
        ends = (input_embeddings(model), output_head(model))
        tied = {name for name, module in base_modules(model).items() if module in ends}
        config.ensure_weight_tying = config.ensure_weight_tying or (is_tied(model) and not tied.isdisjoint(whole))
    check_names(config, model, is_saved=is_saved)
    if not is_saved:
        _narrow_parameters(config, model)
    return config


def trained_whole(config: LoRAConfig, model: nn.Module) -> set[str]:
    """Names of the modules that the freezing fields train; each holds parameters of its own.

    Raises UserError if the model lacks a layer or a kind of module.
    """
    modules = {n: m for n, m in base_modules(model).items() if any(True for _ in m.parameters(recurse=False))}
    whole: set[str] = set()
    for field, module in (("train_embeddings", input_embeddings(model)), ("train_head", output_head(model))):
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
    if config.train_layers is not None and config.train_layers != []:
        layers = layer_numbers(config.train_layers, "train_layers")
        check_layers(layers, "train_layers", modules)
        whole.update(name for name in modules if layer_of(name) in layers)
    return whole


def _narrow_parameters(config: LoRAConfig, model: nn.Module) -> None:
    """Lists target_parameters in full if layers or exclude_modules narrow them; PEFT applies these to modules only."""
    layers, excluded = config.layers_to_transform, config.exclude_modules
    if not config.target_parameters or (layers is None and not excluded):
        return
    layers = [layers] if isinstance(layers, int) else layers

    def is_left_out(parameter: str) -> bool:
        names = (parameter, parameter.rpartition(".")[0])
        if isinstance(excluded, str):
            return any(re.fullmatch(excluded, name) for name in names)
        return any(is_called(name, target) for name in names for target in excluded or ())

    found = [
        parameter
        for parameter in base_parameters(base_modules(model))
        if any(is_called(parameter, target) for target in config.target_parameters)
    ]
    left = [name for name in found if (not layers or layer_of(name) in layers) and not is_left_out(name)]
    if not left:
        raise UserError(
            f"target_parameters {config.target_parameters} match no parameter once layers and exclude_modules are "
            f"taken out: without these they are {', '.join(found)}"
        )
    config.target_parameters = left if left != found else config.target_parameters

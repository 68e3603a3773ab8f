"""Whether settings fit the model that they are for, and which groups of channels do."""

import math
from dataclasses import replace

from stellarbyte.errors import UserError
from stellarbyte_torch.quantization.blocks import EMBEDDING, HEAD, FolderModel
from stellarbyte_torch.quantization.experts import is_router, linears_of
from stellarbyte_torch.quantization.folder_names import on_disk
from stellarbyte_torch.quantization.settings import QuantizationSettings


def check_fits(model: FolderModel, settings: QuantizationSettings) -> None:
    """Raises UserError if the settings do not fit the model."""
    if model.is_tied and (settings.include_head or settings.include_embeddings):
        name = "include_head" if settings.include_head else "include_embeddings"
        raise UserError(f"{name} is for a head of its own, but {model.folder} has tie_word_embeddings: leave it out")
    has_experts = any(".experts." in name for layer in model.empty_layers() for name in linears_of(layer))
    if has_experts and model.model_type != "stellarbyte":
        why = f"Transformers reads the experts of {model.model_type} only on symmetric grids by groups"
        if settings.rounds_activations:
            raise UserError(f"method {settings.method} is not for {model.folder}: {why}; use gptq, awq or rtn")
        if settings.group_size is None or not settings.symmetric:
            name = "symmetric false" if not settings.symmetric else "group_size null"
            raise UserError(f"{name} is not for {model.folder}: {why}")
    inputs_of = _inputs(model, settings)
    fitting = _fitting_sizes(inputs_of)
    for name, inputs in inputs_of.items():
        if settings.group_size is not None and inputs % settings.group_size:
            instead = f"{fitting[0]}, which divides all layers" if fitting else "null for one scale a row"
            raise UserError(
                f"group_size {settings.group_size} does not divide the {inputs} inputs of {name}: use {instead}"
            )


def with_fitting_groups(model: FolderModel, settings: QuantizationSettings) -> QuantizationSettings:
    """The settings with the largest groups, up to their own, that divide the inputs of all layers; else one a row."""
    if settings.group_size is None:
        return settings
    sizes = [size for size in _fitting_sizes(_inputs(model, settings)) if size <= settings.group_size]
    return replace(settings, group_size=sizes[0] if sizes else None)


def _inputs(model: FolderModel, settings: QuantizationSettings) -> dict[str, int]:
    """The number of input channels of each weight that is to be quantised, by its name."""
    inputs = {
        f"{model.prefix(number)}{on_disk(model.model_type, name)}": linear.weight.shape[1]
        for number, layer in enumerate(model.empty_layers())
        for name, linear in linears_of(layer).items()
        if not is_router(name)
    }
    inputs |= {HEAD.removesuffix(".weight"): model.config.hidden_size} if settings.include_head else {}
    return inputs | (
        {EMBEDDING.removesuffix(".weight"): model.config.hidden_size} if settings.include_embeddings else {}
    )


def _fitting_sizes(inputs_of: dict[str, int]) -> list[int]:
    """The sizes of groups that divide all inputs, from the largest."""
    common = math.gcd(*inputs_of.values())
    return [size for size in (128, 64, 32, 16, 8) if common % size == 0]

"""Merges adapters into their base in float32, and measures what rounding the result costs."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import ParamWrapper
from peft.utils import ModulesToSaveWrapper
from peft.utils.save_and_load import get_base_model_state_dict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from stellarbyte.errors import UserError
from stellarbyte_torch.lora.modules import input_embeddings, is_tied, lora_layers
from stellarbyte_torch.lora.nonlinear import CANNOT_MERGE
from stellarbyte_torch.lora.weighted_dora import weight_of


@dataclass(frozen=True)
class MergeDrift:
    """What is lost when merged weights, computed in float32, are rounded to dtype.

    modules: the number of merged modules. largest: the largest rounding error of a weight. share: the Frobenius norm of
    all rounding errors over that of the adapters' whole update; 0 if nothing is rounded, and 1 if rounding errors are
    as large as what was learnt.
    """

    dtype: torch.dtype
    modules: int
    largest: float
    share: float

    def __str__(self) -> str:
        """One line for the terminal."""
        if not self.largest:
            kind = str(self.dtype).removeprefix("torch.")
            return f"merged {self.modules} modules in float32; kept in {kind}, which rounds none of them"
        return (
            f"merged {self.modules} modules in float32; rounding to {str(self.dtype).removeprefix('torch.')} moves "
            f"a weight by at most {self.largest:.2e}, and all of them by {self.share:.2%} of the adapter's update"
        )


@dataclass
class Merged:
    """A merge that can be undone: it keeps the base's own weights, which `undo` puts back to the bit."""

    layers: list[Any]
    originals: list[tuple[nn.Parameter, torch.Tensor]]
    drift: MergeDrift

    def undo(self) -> None:
        """Puts back the very tensors that were there before the merge."""
        for parameter, original in self.originals:
            parameter.data = original
        for layer in self.layers:
            layer.merged_adapters.clear()


def merge(model: PeftModel, dtype: torch.dtype | None = None) -> Merged:
    """Merges the active adapters into the base, in float32 and rounded once, to dtype or by default to the base's own.

    Raises UserError if no adapter is active, one has an activation or trainable_token_indices, adapters are merged
    already, the base is quantised, tied embeddings are adapted, or a merged weight is no finite number in its dtype.
    """
    names = list(model.active_adapters)
    named = {n: layer for n, layer in lora_layers(model).items() if any(name in layer.scaling for name in names)}
    layers = list(named.values())
    _check_mergeable(model, names, layers)

    merged = Merged(
        [], [], MergeDrift(dtype or next(layers[0].get_base_layer().parameters()).dtype, len(layers), 0.0, 0.0)
    )
    largest, lost, learnt = 0.0, 0.0, 0.0
    for name, layer in named.items():
        for parameter, exact in _merged_weights(layer, names):
            rounded = exact.to(dtype or parameter.dtype)
            if not bool(rounded.isfinite().all()):
                merged.undo()
                raise _not_finite(name, rounded.dtype)
            error = (rounded.to(exact.dtype) - exact).double()
            largest = max(largest, error.abs().max().item())
            lost += error.square().sum().item()
            learnt += (exact.double() - parameter.data.double()).square().sum().item()
            merged.originals.append((parameter, parameter.data))
            parameter.data = rounded
        layer.merged_adapters.extend(active for active in names if active in layer.scaling)
        merged.layers.append(layer)
    merged.drift = dataclasses.replace(merged.drift, largest=largest, share=(lost / learnt) ** 0.5 if learnt else 0.0)
    return merged


def merge_and_save(
    model: PeftModel,
    folder: str | Path,
    dtype: torch.dtype | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> MergeDrift:
    """Writes the base with its active adapters merged in as a plain Hugging Face folder; the model stays as it is.

    dtype: the dtype of the folder's weights, by default the base's. If the embeddings are tied and the adapter has
    trained only the embeddings or only the head, they are written untied. Returns what rounding costs.
    Raises UserError where `merge` does, and if the base is not a Transformers model.
    """
    base = model.get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise UserError(
            f"{type(base).__name__} is no transformers model: merge_and_save writes Hugging Face folders only"
        )
    base_dtype = base.dtype
    merged = merge(model, dtype)
    try:
        weights = get_base_model_state_dict(model)
        for name, module in base.named_modules():
            if isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
                trained = module.modules_to_save[module.active_adapters[0]].state_dict()
                weights |= {f"{name}.{key}": value for key, value in trained.items()}
        if dtype is not None:  # except for weights that the model keeps in float32 on purpose
            weights = {key: value.to(dtype) if value.dtype == base_dtype else value for key, value in weights.items()}
            for key, value in weights.items():
                if value.is_floating_point() and not bool(value.isfinite().all()):
                    raise _not_finite(key, value.dtype)
        config = copy.deepcopy(base.config)
        if is_tied(base) and not _are_still_tied(base, weights):
            config.get_text_config().tie_word_embeddings = config.tie_word_embeddings = False
        # A model without adapters holds the weights, so that the folder is exactly as Transformers would write it.
        with torch.device("meta"):
            plain = type(base)(config)
        plain.load_state_dict(weights, assign=True)
        plain.tie_weights()
        if base.can_generate():
            plain.generation_config = base.generation_config
        plain.save_pretrained(folder)
    finally:
        merged.undo()
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return merged.drift


def _not_finite(name: str, dtype: torch.dtype) -> UserError:
    kind = str(dtype).removeprefix("torch.")
    hint = "base or adapter is broken" if dtype == torch.float32 else "merge to float32, or to bfloat16"
    name = name.removeprefix("base_model.model.")
    return UserError(f"merged, {name} holds numbers that {kind} cannot hold as finite ones: {hint}")


def _are_still_tied(base: PreTrainedModel, weights: dict[str, torch.Tensor]) -> bool:
    """Whether the weights to be written have one matrix for embeddings and head, as the base has."""
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    (embeddings,), (head,) = ([f"{n}.weight" for n, m in base.named_modules() if m is end] for end in ends)
    return head not in weights or embeddings not in weights or torch.equal(weights[head], weights[embeddings])


def _check_mergeable(model: PeftModel, names: list[str], layers: list[Any]) -> None:
    if not layers:
        raise UserError("no adapter is active, so there is nothing to merge: activate one first")
    for name in names:
        config: Any = model.peft_config[name]
        if getattr(config, "activation", None) is not None:
            raise UserError(CANNOT_MERGE.format(name=name, activation=config.activation))
        if getattr(config, "trainable_token_indices", None) is not None:
            raise UserError(
                f"adapter {name!r} has trainable_token_indices, which PEFT alone merges: use merge_and_unload"
            )
    base: Any = model.get_base_model()
    for layer in layers:
        if layer.merged:
            raise UserError(f"adapters {layer.merged_adapters} are merged already: unmerge first")
        for parameter in layer.get_base_layer().parameters(recurse=False):
            is_float = parameter.is_floating_point() and type(parameter.data) is torch.Tensor
            if not is_float or hasattr(layer.get_base_layer(), "quantization_scheme"):
                raise UserError(
                    "the base is quantised, so a merge would round the adapter to its few bits: "
                    "load the base in float32 or bfloat16, the adapter on it, and merge there"
                )
            if is_tied(base) and parameter is getattr(input_embeddings(base), "weight", None):
                raise UserError(
                    "the adapted embeddings are the head as well (tie_word_embeddings), and merging would change both: "
                    "untie them, or leave embed_tokens and lm_head out of target_modules"
                )


def _merged_weights(layer: Any, names: list[str]) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """The base's parameters that the adapters change, with their merged values in float32; the layer is unchanged."""
    base = layer.get_base_layer()
    changed = [getattr(base, layer.parameter_name)] if isinstance(layer, ParamWrapper) else list(base.parameters())
    here = [name for name in names if name in layer.scaling]
    weights = {name: weight_of(layer, name) for name in here}
    with _in_float32(layer):
        has_dora = any(name in layer.lora_magnitude_vector for name in here)
        if not has_dora or list(weights.values()) == [1.0]:
            _merge_in(layer, here)
            return [(parameter, parameter.data) for parameter in changed]
        # DoRA's update depends on the base's own weights, so each adapter is merged alone and their updates are added.
        originals = [parameter.data for parameter in changed]
        sums = [original.clone() for original in originals]
        for name, weight in weights.items():
            for parameter, original in zip(changed, originals, strict=True):
                parameter.data = original.clone()
            _merge_in(layer, [name])
            for total, parameter, original in zip(sums, changed, originals, strict=True):
                total += weight * (parameter.data - original)
        return list(zip(changed, sums, strict=True))


def _merge_in(layer: Any, names: list[str]) -> None:
    """PEFT's merge without the notes that it keeps for its own unmerge."""
    layer.merge(adapter_names=names)
    layer.merged_adapters.clear()
    layer._caches.clear()


@contextmanager
def _in_float32(layer: nn.Module) -> Iterator[None]:
    """Replaces the layer's parameters by float32 copies inside the block (float64 stays); afterwards they are back."""
    parameters = list(layer.parameters())
    originals = [parameter.data for parameter in parameters]
    for parameter, original in zip(parameters, originals, strict=True):
        parameter.data = original.to(torch.promote_types(original.dtype, torch.float32), copy=True)
    try:
        yield
    finally:
        for parameter, original in zip(parameters, originals, strict=True):
            parameter.data = original

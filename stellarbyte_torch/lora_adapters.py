"""Putting adapters on a model: new ones from a config, trained ones from PEFT's folder."""

import copy
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear
from peft.utils import load_peft_weights
from torch import nn

from stellarbyte.errors import UserError
from stellarbyte_torch.lora_config import LoRAConfig
from stellarbyte_torch.lora_targets import lora_layers, resolve


def apply_lora_to_model(model: nn.Module, config: LoraConfig, adapter_name: str = "default") -> PeftModel:
    """The model with an untrained adapter on it, in place; it alone trains, and what the config names beside it.

    Works on any module with linear, embedding or convolution layers or stacked parameters; on a PeftModel it adds a
    further adapter, not yet active. Raises UserError: a target or a layer that the model does not have.
    """
    if not isinstance(config, LoRAConfig):
        config = _from_peft(config)
    if isinstance(model, PeftModel):
        config = resolve(config, model.get_base_model())
        config.task_type = config.task_type or model.active_peft_config.task_type
        if config.activation is not None and any(type(layer) is Linear for layer in lora_layers(model).values()):
            raise UserError(
                f"activation {config.activation!r} cannot join adapters that peft itself put on this model: "
                "put those on with apply_lora_to_model or load_lora"
            )
        model.add_adapter(adapter_name, config)
        return model
    config = resolve(config, model)
    if config.task_type is None and _generates(model):
        config.task_type = "CAUSAL_LM"
    return get_peft_model(model, config, adapter_name)


def load_lora(
    model: nn.Module, folder: str | Path, adapter_name: str = "default", trainable: bool = False
) -> PeftModel:
    """The model with the adapter of a PEFT folder or Hub id on it, ours or stock PEFT's; in place, frozen by default.

    Raises UserError: an adapter trained on another base, with the key and the shapes that differ.
    """
    config = LoRAConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    # PEFT warns when the base's name differs; whether it is the same base is told below, by its shapes.
    config.base_model_name_or_path = None
    weights = load_peft_weights(str(folder), device=str(next(model.parameters()).device))
    was_plain = not isinstance(model, PeftModel)
    peft_model = apply_lora_to_model(model, config, adapter_name)
    try:
        _load_weights(peft_model, weights, adapter_name, folder)
    except UserError:
        if was_plain:
            peft_model.unload()
        else:
            peft_model.delete_adapter(adapter_name)
        raise
    return peft_model if trainable else peft_model.eval()


def _from_peft(config: LoraConfig) -> LoRAConfig:
    fields = {name: copy.deepcopy(getattr(config, name)) for name, f in config.__dataclass_fields__.items() if f.init}
    return LoRAConfig(**fields)


def _generates(model: Any) -> bool:
    return (
        hasattr(model, "can_generate")
        and model.can_generate()
        and not getattr(model.config, "is_encoder_decoder", False)
    )


def _load_weights(model: PeftModel, weights: dict[str, torch.Tensor], adapter_name: str, folder: str | Path) -> None:
    other_base = f"the adapter in {folder} belongs to another base"
    expected = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    for key, value in expected.items():
        if key in weights and weights[key].shape != value.shape:
            shapes = f"{list(weights[key].shape)} in the adapter, {list(value.shape)} on this model"
            raise UserError(f"{other_base}: {key} is {shapes}; load it on the model it was trained on")
    # PEFT stops with a bare KeyError at a missing module that trains whole; LoRA's own keys it reports.
    for key in expected.keys() - weights.keys():
        if "lora_" not in key:
            raise UserError(
                f"{other_base}: this model needs {key}, {list(expected[key].shape)}, and the adapter lacks it"
            )
    result: Any = set_peft_model_state_dict(model, weights, adapter_name=adapter_name)
    missing = [key for key in result.missing_keys if "lora_" in key and adapter_name in key.split(".")]
    for key in result.unexpected_keys:
        name = key.replace(f".{adapter_name}", "")
        shape = f", {list(weights[name].shape)}," if name in weights else ""
        raise UserError(f"{other_base}: it has {name}{shape} and this model has no such place")
    for key in missing:
        raise UserError(f"{other_base}: this model needs {key}, and the adapter lacks it")

"""Recognises an adapter's base when the adapter is loaded, and tells which adapters would change the base."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from stellarbyte.adapter_base import AdapterBase, check_adapter, sampled
from stellarbyte.errors import UserError
from stellarbyte_torch.lora.config import LoRAConfig
from stellarbyte_torch.lora.modules import input_embeddings

_MOVING_INITS = ("pissa", "olora", "corda", "lora_ga")


def base_of(model: Any) -> AdapterBase | None:
    """The description of `model` that an adapter on it is saved with; None for a model without a config."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return None
    weight: Any = getattr(input_embeddings(model), "weight", None)
    is_readable = isinstance(weight, torch.Tensor) and type(weight.data) is torch.Tensor and not weight.is_meta
    if not is_readable or not weight.is_floating_point() or weight.ndim != 2:
        return AdapterBase.of(config.to_dict())
    return AdapterBase.of(config.to_dict(), sampled(weight[:64, :1].detach().float().cpu().tolist()))


def check_base(folder: Path, config: LoRAConfig, model: Any) -> None:
    """Compares the base that an adapter's folder describes with the model; raises and warns as `check_adapter` does."""
    here = base_of(model)
    if here is not None:
        stated = {"base_model_name_or_path": config.base_model_name_or_path, "revision": config.revision}
        if config.revision == getattr(model.config, "_commit_hash", None):
            del stated["revision"]
        check_adapter(folder, stated, here, getattr(model.config, "name_or_path", ""))


def moves_base(config: LoraConfig) -> bool:
    """Whether an adapter starts with a part of the base's weights, which is subtracted from the base."""
    return str(config.init_lora_weights).startswith(_MOVING_INITS)


def base_change(config: LoraConfig) -> str | None:
    """A clause about the field of `config` that changes the base's own weights; None if there is none."""
    if moves_base(config):
        return f"init_lora_weights {config.init_lora_weights!r} moves a part of the base's weights into the adapter"
    if config.bias != "none":
        return f"bias {config.bias!r} trains the base's own biases"
    if config.kasa_config is not None:
        return "kasa_config cuts singular values off the base's weights"
    if config.layer_replication:
        return "layer_replication gives the base other layers"
    return None


def check_base_stays(config: LoraConfig) -> None:
    """Raises UserError if the adapter would change the base that other adapters share."""
    change = base_change(config)
    if change is not None:
        raise UserError(
            f"{change}, which all adapters of a model share: leave that out, or use the adapter alone on a model "
            "(finetune and merge do so)"
        )

"""Puts adapters on a model: new ones from a config, trained ones from PEFT's folder; if that fails, nothing changes."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import Linear
from torch import nn

from stellarbyte.errors import UserError
from stellarbyte_torch.lora.base import base_of, check_base, check_base_stays, moves_base
from stellarbyte_torch.lora.config import LoRAConfig
from stellarbyte_torch.lora.folder import AdapterFolder, read_adapter
from stellarbyte_torch.lora.matches import settle_patterns
from stellarbyte_torch.lora.modules import base_modules, base_parameters, input_embeddings, lora_layers, output_head
from stellarbyte_torch.lora.names import check_adapter_name
from stellarbyte_torch.lora.rollback import unchanged_on_failure
from stellarbyte_torch.lora.start import start_of
from stellarbyte_torch.lora.targets import resolve


def apply_lora_to_model(model: nn.Module, config: LoraConfig, adapter_name: str = "default") -> PeftModel:
    """The model with an untrained adapter put on it in place; only it trains, and the modules that the config names.

    Works on any module with linear, embedding or convolution layers or stacked parameters; on a PeftModel it adds
    another adapter, which is not yet active. Raises UserError if the model lacks a target, a name or a layer, or if the
    adapter's initialisation would change the base that others share; the model is then as it was.
    """
    return _put_on(model, config, adapter_name, is_saved=False)


def load_lora(
    model: nn.Module,
    folder: str | Path,
    adapter_name: str = "default",
    trainable: bool = False,
    shares_base: bool = False,
) -> PeftModel:
    """The model with a trained adapter, ours or stock PEFT's, put on it in place; frozen unless `trainable`.

    folder: a folder in PEFT's format, or a Hub id. shares_base: whether other adapters will join this one; then an
    adapter that changes the base's own weights is refused.
    Raises UserError if the folder is broken, or the adapter was trained on another base; it names the key and shapes
    that differ, and the model is then as it was. Warns with AdapterWarning if the base cannot be recognised for sure.
    """
    found = read_adapter(folder, next(model.parameters()).device)
    config = found.config
    config.inference_mode = not trainable
    shares_base = shares_base or isinstance(model, PeftModel)
    if shares_base:
        check_base_stays(config)
    if str(config.init_lora_weights).startswith("pissa_niter"):
        raise UserError(
            f"the adapter in {folder} began with {config.init_lora_weights}, which draws at random what it takes from "
            "the base, so that the base it was trained on is lost: save it with PEFT's "
            "path_initial_model_for_weight_conversion"
        )
    saved = copy.copy(config)
    # PEFT would warn if the base's name differs; check_base below finds out whether it is the same base.
    config.base_model_name_or_path = None
    with unchanged_on_failure(model):
        peft_model = _put_on(model, config, adapter_name, is_saved=True)
        with _explained():
            _load_weights(peft_model, found, adapter_name, shares_base=shares_base)
        check_base(found.folder, saved, peft_model.get_base_model())
    return peft_model if trainable else peft_model.eval()


def _put_on(model: nn.Module, config: LoraConfig, adapter_name: str, *, is_saved: bool) -> PeftModel:
    if not isinstance(config, LoRAConfig):
        config = _from_peft(config)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    modules = base_modules(base)
    check_adapter_name(adapter_name, [*modules, *base_parameters(modules)])
    config = resolve(config, base, is_saved=is_saved)
    with unchanged_on_failure(model), _explained():
        config.base = base_of(base)
        if isinstance(model, PeftModel):
            _add(model, config, adapter_name)
        else:
            if config.task_type is None and _generates(model):
                config.task_type = "CAUSAL_LM"
            model = get_peft_model(model, config, adapter_name)
        settle_patterns(model, adapter_name, is_saved=is_saved)
        if moves_base(config):
            config.start = start_of(model, adapter_name)
    return model


def _add(model: PeftModel, config: LoRAConfig, adapter_name: str) -> None:
    if adapter_name in model.peft_config:
        raise UserError(f"adapter name {adapter_name!r} is in use: delete that adapter first, or choose another name")
    check_base_stays(config)
    config.task_type = config.task_type or model.active_peft_config.task_type
    if config.activation is not None and any(type(layer) is Linear for layer in lora_layers(model).values()):
        raise UserError(
            f"activation {config.activation!r} cannot join adapters that peft itself put on this model: "
            "put those on with apply_lora_to_model or load_lora"
        )
    model.add_adapter(adapter_name, config)


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what PEFT raises for a config on a model, which may be any kind of error, into a UserError."""
    try:
        with warnings.catch_warnings():
            # settle_patterns refuses such keys of a new adapter; a trained one may name more than this model has.
            warnings.filterwarnings("ignore", message=r".*_pattern keys did not match any targeted module")
            yield
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ImportError, RuntimeError) as error:
        raise UserError(f"these fields do not go together on this model: {' '.join(str(error).split())}") from error


def _from_peft(config: LoraConfig) -> LoRAConfig:
    fields = {name: copy.deepcopy(getattr(config, name)) for name, f in config.__dataclass_fields__.items() if f.init}
    return LoRAConfig(**fields)


def _generates(model: Any) -> bool:
    return (
        hasattr(model, "can_generate")
        and model.can_generate()
        and not getattr(model.config, "is_encoder_decoder", False)
    )


def _load_weights(model: PeftModel, found: AdapterFolder, adapter_name: str, *, shares_base: bool) -> None:
    other_base = f"the adapter in {found.folder} belongs to another base"
    weights = _without_base(model, found, shares_base=shares_base)
    expected = get_peft_model_state_dict(model, adapter_name=adapter_name, save_embedding_layers=False)
    for key, value in expected.items():
        if key in weights and weights[key].shape != value.shape:
            shapes = f"{list(weights[key].shape)} in the adapter, {list(value.shape)} on this model"
            raise UserError(f"{other_base}: {key} is {shapes}; load it on the model it was trained on")
        if key in weights and weights[key].is_floating_point() != value.is_floating_point():
            raise UserError(
                f"the adapter in {found.folder} holds {key} as {weights[key].dtype}: save it as {value.dtype}"
            )
    # PEFT raises a bare KeyError if a module that trains whole is missing; LoRA's own missing keys it reports.
    for key in sorted(expected.keys() - weights.keys()):
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


def _without_base(model: PeftModel, found: AdapterFolder, *, shares_base: bool) -> dict[str, torch.Tensor]:
    """The adapter's weights without base weights that equal this base's own.

    PEFT saves the base's embeddings beside adapted ones, and trained biases are the base's. These may differ unless
    `shares_base`. Raises UserError for any other base weight that differs.
    """
    state = model.state_dict(keep_vars=True)
    ends = [end for end in (input_embeddings(model), output_head(model)) if end is not None]
    movable = {id(parameter) for end in ends for parameter in end.parameters(recurse=False)}
    has_biases = found.config.bias != "none"
    weights = dict(found.weights)
    for key, value in found.weights.items():
        here = state.get(key)
        if here is None:
            continue
        if here.shape != value.shape:
            raise UserError(
                f"the adapter in {found.folder} brings {key} of the base along, {list(value.shape)}, and this "
                f"model's is {list(here.shape)}: resize_token_embeddings first, or load it where it was trained"
            )
        if torch.equal(here, value.to(here)):
            del weights[key]
        elif shares_base or not (id(here) in movable or (has_biases and key.endswith("bias"))):
            raise UserError(
                f"the adapter in {found.folder} brings other values for {key} along, which are the base's own: load it "
                "alone on the model it was trained on"
            )
        else:
            here.data = here.data.clone()  # loading writes in place, and may have to be undone
    if has_biases:  # PEFT expects all of them
        weights |= {key: value for key, value in found.weights.items() if key.endswith("bias")}
    return weights

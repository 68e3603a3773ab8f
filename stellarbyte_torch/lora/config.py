"""LoRAConfig: PEFT's LoraConfig with layer ranges, freezing, regularisation, LoRA+ and an activation."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import peft
import torch
from peft import LoraConfig, LoraRuntimeConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from stellarbyte.adapter_base import AdapterBase
from stellarbyte.errors import UserError
from stellarbyte.layer_ranges import layer_numbers
from stellarbyte_torch.lora.fields import check_fields
from stellarbyte_torch.lora.nonlinear import adapt_linear

# Written into adapter_config.json instead of "LORA": a PEFT without this package then refuses the folder; otherwise it
# would drop the activation and compute something else.
NONLINEAR_TYPE = "NONLINEAR_LORA"
FREEZING = ("train_embeddings", "train_norms", "train_head", "train_layers")
Layers = str | Iterable[int] | None


@dataclass
class LoRAConfig(LoraConfig):
    """PEFT's LoraConfig, all of whose fields are here as well; saved, it is a plain adapter_config.json.

    Raises UserError: an unknown field, or a value that no adapter can have.
    """

    # PEFT's own annotations are narrower than what it accepts.
    lora_alpha: int | float = 8  # type: ignore[assignment]
    """The adapters' scaling times r, or times the root of r with use_rslora; any number but 0."""

    init_lora_weights: bool | str = dataclasses.field(  # type: ignore[assignment]
        default=True, metadata=LoraConfig.__dataclass_fields__["init_lora_weights"].metadata
    )
    layers: Layers = None
    """The layers that get adapters, as "0-3,8" (both ends included) or a list of numbers; null for all. It narrows
    target_modules in any form, and target_parameters.
    """

    train_embeddings: bool = False
    """Whether the input embeddings train whole, beside the adapters."""

    train_norms: bool = False
    """Whether the norms train whole, beside the adapters."""

    train_head: bool = False
    """Whether the output head trains whole, beside the adapters."""

    train_layers: Layers = None
    """The layers that train whole, as "4-7" (both ends included) or a list of numbers; they get no adapters. null for
    none.
    """

    activation: str | None = dataclasses.field(default=None, metadata={"is_lora_variant": True})
    """The activation between A and B of a non-linear LoRA: gelu, relu, sigmoid, silu or tanh; null for plain LoRA. A
    non-linear adapter cannot be merged, and StellarByte alone loads it.
    """

    orthogonal_reg: float = 0.0
    """Coefficient of a loss that keeps the rows of A and the columns of B orthonormal (Zhang et al. 2023,
    arXiv:2303.10512); 0 for none.
    """

    l2_reg: float = 0.0
    """Coefficient of a loss of the squared norms of A and B; 0 for none."""

    loraplus_lr_ratio: float | None = None
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): the learning rate of B as a multiple of A's; null for one rate."""

    loraplus_lr_embedding: float = 1e-6
    """LoRA+: the learning rate of adapters on embeddings, with loraplus_lr_ratio."""

    # Not in __init__, which the dataclass generates. Fields that PEFT reads from a JSON file are checked here as well.
    def __new__(cls, *_: Any, **fields: Any) -> Self:
        """Raises UserError if a field is unknown."""
        cls.check_names(fields)
        return super().__new__(cls)

    @classmethod
    def check_names(cls, fields: Iterable[str]) -> None:
        """Raises UserError if neither PEFT nor this config has one of the fields."""
        known = {field.name for field in dataclasses.fields(cls) if field.init}
        for name in sorted(set(fields) - known):
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"LoRA config field {name!r} is unknown to PEFT {peft.__version__} and to StellarByte: "
                + (f"did you mean {near[0]!r}?" if near else "remove it, or upgrade peft if a newer one wrote it")
            )

    def __post_init__(self) -> None:
        """Checks the values, expresses `layers` in PEFT's own fields, and registers the non-linear layer with PEFT."""
        self.rank_pattern, self.alpha_pattern = self.rank_pattern or {}, self.alpha_pattern or {}
        check_fields(self)
        self.narrowed_to: list[int] | None = None
        self._narrow_to_layers()
        # The model that the adapter is on, for save_pretrained; and A and B at the start, if they were taken from it.
        self.base: AdapterBase | None = None
        self.start: dict[str, torch.Tensor] | None = None
        if isinstance(self.runtime_config, dict):
            self.runtime_config = LoraRuntimeConfig(**self.runtime_config)
        try:
            super().__post_init__()
        except (ValueError, TypeError, AttributeError, ImportError) as error:  # PEFT checks more than check_fields
            raise UserError(f"these fields do not go together: {' '.join(str(error).split())}") from error
        self._register_custom_module({nn.Module: _adapt})  # type: ignore[dict-item]  # PEFT calls it, no more

    def _narrow_to_layers(self) -> None:
        """Expresses `layers` as PEFT's layers_to_transform, or as exclude_modules if target_modules is one string."""
        if self.layers is None:
            return
        if self.layers_to_transform is not None:
            raise UserError("layers and layers_to_transform say the same thing: give one of them")
        layers, self.layers = layer_numbers(self.layers, "layers"), None
        self.narrowed_to = layers  # checked later against the model's layers
        if not isinstance(self.target_modules, str):
            self.layers_to_transform = layers
            return
        # PEFT takes the first number in a module's name for its layer, and so does this.
        inside = rf"(?:(?!\d+\.)[^.]+\.)+(?:{'|'.join(map(str, layers))})\."
        omitted = [rf"(?!{inside}).*"]
        if isinstance(self.exclude_modules, str):
            omitted.append(self.exclude_modules)
        elif self.exclude_modules:
            omitted.append(rf"(?:.*\.)?(?:{'|'.join(map(re.escape, self.exclude_modules))})")
        self.exclude_modules = "|".join(f"(?:{pattern})" for pattern in omitted)

    @property
    def is_resolved(self) -> bool:
        """Whether the freezing fields have become modules_to_save, or were never set."""
        return not any(getattr(self, name) for name in FREEZING)

    def to_dict(self) -> dict[str, Any]:
        """PEFT's fields, which are all that a saved adapter needs; with an activation, also that and our peft_type."""
        fields = super().to_dict()
        for field in dataclasses.fields(self):
            if field.name not in LoraConfig.__dataclass_fields__:
                del fields[field.name]
        if self.activation is not None:
            fields |= {"activation": self.activation, "peft_type": NONLINEAR_TYPE}
        return fields

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Writes PEFT's adapter_config.json, and beside it a description of the adapter's base."""
        super().save_pretrained(save_directory, **kwargs)
        if self.base is not None:
            self.base.write(Path(save_directory))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The config that a YAML section holds. Raises UserError if a field is unknown."""
        return cls(**fields)

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> Self:
        """The config with a JSON file's fields, for PEFT's from_pretrained; PEFT's own picks a class by peft_type."""
        kind = kwargs.get("peft_type", "LORA")
        if kind not in ("LORA", NONLINEAR_TYPE):
            raise UserError(f"peft_type is {kind!r}, and LoRAConfig reads LORA and {NONLINEAR_TYPE}: load it with peft")
        return cls(**kwargs)


def _adapt(target: nn.Module, adapter_name: str, *, config: LoRAConfig, **kwargs: Any) -> nn.Module | None:
    # PEFT's get_peft_model knows nothing of the freezing fields, and would ignore them silently if called directly.
    if not config.is_resolved:
        fields = ", ".join(name for name in FREEZING if getattr(config, name))
        raise UserError(f"{fields}: needs stellarbyte_torch.lora.apply_lora_to_model instead of peft's get_peft_model")
    return adapt_linear(target, adapter_name, config=config, **kwargs)


# PEFT's own register_peft_method accepts only the types of its closed enumeration; it would fill this table.
PEFT_TYPE_TO_CONFIG_MAPPING[NONLINEAR_TYPE] = LoRAConfig  # type: ignore[index]

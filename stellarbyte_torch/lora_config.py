"""LoRAConfig: PEFT's LoraConfig with layer ranges, freezing, regularisation, LoRA+ and an activation."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import peft
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn

from stellarbyte.errors import UserError
from stellarbyte_torch.nonlinear_lora import ACTIVATIONS, adapt_linear

# Written into adapter_config.json instead of "LORA": a PEFT that has not met this package refuses the folder, where it
# would otherwise drop the activation and compute something else.
NONLINEAR_TYPE = "NONLINEAR_LORA"
FREEZING = ("train_embeddings", "train_norms", "train_head", "train_layers")
Layers = str | Iterable[int] | None


@dataclass
class LoRAConfig(LoraConfig):
    """PEFT's LoraConfig, all of whose fields are here as well; saved, it is a plain adapter_config.json.

    layers: the layers to adapt, as "0-3,8" (both ends included) or numbers; with any form of target_modules.
    train_embeddings, train_norms, train_head, train_layers: what trains whole beside the adapters, everything else is
    frozen; layers trained whole get no adapter. apply_lora_to_model turns these into PEFT's modules_to_save.
    activation: non-linear LoRA, one of gelu, relu, sigmoid, silu, tanh between A and B; such an adapter cannot merge.
    orthogonal_reg, l2_reg: coefficients of stellarbyte_torch.lora.regularisation.
    loraplus_lr_ratio, loraplus_lr_embedding: LoRA+ (Hayou et al. 2024), B's learning rate over A's, and that of
    embeddings' adapters; used by stellarbyte_torch.lora.lora_optimizer.

    Raises UserError: an unknown field, or a value that no adapter can have.
    """

    layers: Layers = None
    train_embeddings: bool = False
    train_norms: bool = False
    train_head: bool = False
    train_layers: Layers = None
    activation: str | None = dataclasses.field(default=None, metadata={"is_lora_variant": True})
    orthogonal_reg: float = 0.0
    l2_reg: float = 0.0
    loraplus_lr_ratio: float | None = None
    loraplus_lr_embedding: float = 1e-6

    # Here rather than in __init__, which the dataclass writes: also what PEFT reads from a json passes this way.
    def __new__(cls, *_: Any, **fields: Any) -> Self:
        """Refuse unknown fields: raises UserError."""
        known = {field.name for field in dataclasses.fields(cls) if field.init}
        for name in fields.keys() - known:
            near = difflib.get_close_matches(name, known, n=1)
            raise UserError(
                f"LoRA config field {name!r} is unknown to PEFT {peft.__version__} and to StellarByte: "
                + (f"did you mean {near[0]!r}?" if near else "remove it, or upgrade peft if a newer one wrote it")
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Check the values, write `layers` in PEFT's own fields, and bring in the non-linear layer."""
        self._check_values()
        self._narrow_to_layers()
        super().__post_init__()
        self._register_custom_module({nn.Module: _adapt})  # type: ignore[dict-item]  # PEFT calls it, no more

    def _check_values(self) -> None:
        ranks = {"r": self.r, **{f"rank_pattern[{key!r}]": rank for key, rank in (self.rank_pattern or {}).items()}}
        for name, rank in ranks.items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank <= 0:
                raise UserError(f"{name} is {rank!r}: a rank is a whole number, 1 or more")
        if not 0.0 <= self.lora_dropout < 1.0:
            raise UserError(f"lora_dropout is {self.lora_dropout}: choose a probability from 0 up to, not including, 1")
        for name in ("orthogonal_reg", "l2_reg"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}: choose 0 (off) or more")
        if self.loraplus_lr_ratio is not None and self.loraplus_lr_ratio <= 0:
            raise UserError(f"loraplus_lr_ratio is {self.loraplus_lr_ratio}: choose more than 0, or null for one rate")
        if self.activation is not None and self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation {self.activation!r} is unknown: choose one of {', '.join(ACTIVATIONS)}, or null"
            )

    def _narrow_to_layers(self) -> None:
        """PEFT's layers_to_transform where it allows it, for targets in a list; else an expression of what to omit."""
        if self.layers is None:
            return
        if self.layers_to_transform is not None:
            raise UserError("layers and layers_to_transform say the same thing: give one of them")
        layers, self.layers = layer_numbers(self.layers, "layers"), None
        if not isinstance(self.target_modules, str):
            self.layers_to_transform = layers
            return
        # PEFT counts as the layer the first number in a module's name, and so does this.
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
        """PEFT's fields alone, all that an adapter is; of ours only the activation, and with it a type of its own."""
        fields = super().to_dict()
        for field in dataclasses.fields(self):
            if field.name not in LoraConfig.__dataclass_fields__:
                del fields[field.name]
        if self.activation is not None:
            fields |= {"activation": self.activation, "peft_type": NONLINEAR_TYPE}
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The config that a YAML section holds. Raises UserError: an unknown field."""
        return cls(**fields)

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> Self:
        """What PEFT's from_pretrained calls with the json's fields; there it would choose the class by peft_type."""
        kind = kwargs.get("peft_type", "LORA")
        if kind not in ("LORA", NONLINEAR_TYPE):
            raise UserError(f"peft_type is {kind!r}, and LoRAConfig reads LORA and {NONLINEAR_TYPE}: load it with peft")
        return cls(**kwargs)


def layer_numbers(layers: str | Iterable[int], field: str) -> list[int]:
    """ "0-3,8" or numbers -> the numbers, ascending. Raises UserError: no such list."""
    numbers: set[int] = set()
    for part in layers.split(",") if isinstance(layers, str) else map(str, layers):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise UserError(f'{field} is {layers!r}: write layer numbers as "0-3,8" or [0, 1, 2, 3, 8]')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"{field} is {layers!r}: {first}-{last} runs backwards")
        numbers.update(range(first, last + 1))
    if not numbers:
        raise UserError(f"{field} is {layers!r}: name one layer at least, or leave it out")
    return sorted(numbers)


def _adapt(target: nn.Module, adapter_name: str, *, config: LoRAConfig, **kwargs: Any) -> nn.Module | None:
    # PEFT's get_peft_model, called directly, knows nothing of the freezing fields and would leave them out in silence.
    if not config.is_resolved:
        fields = ", ".join(name for name in FREEZING if getattr(config, name))
        raise UserError(f"{fields}: needs stellarbyte_torch.lora.apply_lora_to_model instead of peft's get_peft_model")
    return adapt_linear(target, adapter_name, config=config, **kwargs)


# PEFT's own register_peft_method takes only the types of its closed enumeration; this is the table that it fills.
PEFT_TYPE_TO_CONFIG_MAPPING[NONLINEAR_TYPE] = LoRAConfig  # type: ignore[index]

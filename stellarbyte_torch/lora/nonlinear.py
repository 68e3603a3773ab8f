"""Puts an activation between LoRA's A and B, as a variant of PEFT's linear layer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.layer import LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from stellarbyte.errors import UserError
from stellarbyte_torch.lora.weighted_dora import WeightedDora

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}
CANNOT_MERGE = (
    "adapter {name!r} has activation {activation!r} between A and B, so no matrix added to the base weight equals it: "
    "keep it as an adapter, or train one with activation null to merge"
)


class NonlinearVariant(LoraVariant):
    """y = base(x) + scaling · B(activation(A(dropout(x)))). PEFT's interface wants static methods."""

    activation: str

    def supports_lora_conversion(self) -> bool:
        """False, because an ordinary adapter has no place for the activation."""
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, **kwargs: Any) -> None:
        """Remembers the adapter's activation, which PEFT passes in its config."""
        _variant(module, adapter_name).activation = kwargs["config"].activation

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **_: Any
    ) -> torch.Tensor:
        """The input [..., in] and the output so far [..., out] give the new output [..., out]."""
        activation = ACTIVATIONS[_variant(module, active_adapter).activation]
        hidden = activation(module.lora_A[active_adapter](module.lora_dropout[active_adapter](x)))
        return result + module.lora_B[active_adapter](hidden) * module.scaling[active_adapter]

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        """Raises UserError: such an adapter cannot be merged."""
        activation = _variant(module, active_adapter).activation
        raise UserError(CANNOT_MERGE.format(name=active_adapter, activation=activation))

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> None:
        """Raises UserError: such an adapter cannot be merged."""
        NonlinearVariant.merge_safe(module, active_adapter, orig_weight)


def _variant(module: LoraLayer, adapter_name: str) -> NonlinearVariant:
    variant = module.lora_variant[adapter_name]
    assert isinstance(variant, NonlinearVariant)
    return variant


class LoraLinear(Linear):
    """PEFT's linear layer with our variants beside PEFT's own, so that adapters of all kinds share one layer."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        """PEFT's table of config fields -> variant, with ours added."""
        return {**super().lora_variants, ("activation",): NonlinearVariant, ("use_dora",): WeightedDora}


def adapt_linear(target: nn.Module, adapter_name: str, *, config: LoraConfig, **kwargs: Any) -> nn.Module | None:
    """The layer for LoRAConfig in PEFT's dispatch: a LoraLinear, or None to leave `target` to PEFT's own dispatchers.

    They get everything except unquantised nn.Linear and Conv1D, and quantised ones if the adapter is non-linear.
    """
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    activation = getattr(config, "activation", None)
    if kwargs.get("parameter_name") is not None or not isinstance(base, nn.Linear | Conv1D):
        if activation is not None:
            raise UserError(
                f"activation {activation!r} works on linear layers only, and a target is a {type(base).__name__}: "
                "leave it out of the targets"
            )
        return None
    is_plain = type(base) in (nn.Linear, Conv1D) and type(base.weight.data) is torch.Tensor
    if not is_plain and activation is None:
        return None
    # PEFT's dispatch_default sets this for the two layouts as well, with a warning.
    config.fan_in_fan_out = isinstance(base, Conv1D)
    return LoraLinear(target, adapter_name, config=config, is_target_conv_1d_layer=isinstance(base, Conv1D), **kwargs)

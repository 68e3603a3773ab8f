"""A DoRA whose whole update can be multiplied by an adapter's weight and added to other adapters' updates."""

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant


class WeightedDora(DoraLinearVariant):
    """y = base(x) + … + weight · (dora(x) - base(x)); at weight 1 and without other adapters, PEFT's result to the bit.

    PEFT's own variant scales A B alone, so trained norms would still act at weight 0, and it takes the sum of the base
    and the adapters before it for the base's output.
    """

    weight = 1.0

    @staticmethod
    def forward(  # type: ignore[override]  # PEFT's own variants narrow the layer as well
        module: Linear, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """The input [..., in] and the output so far [..., out] give the new output [..., out]."""
        weight = weight_of(module, active_adapter)
        first = next((name for name in module.active_adapters if name in module.lora_A), active_adapter)
        if weight == 1.0 and active_adapter == first:
            return DoraLinearVariant.forward(module, active_adapter, x, result, **kwargs)
        base = module.base_layer(x.to(module.get_base_weight().dtype)).to(result.dtype)
        return result + weight * (DoraLinearVariant.forward(module, active_adapter, x, base, **kwargs) - base)


def weight_of(module: LoraLayer, adapter_name: str) -> float:
    """The factor that a layer puts on an adapter's whole update; 1 without DoRA, where the scaling holds it."""
    return getattr(module.lora_variant.get(adapter_name), "weight", 1.0)


def weigh(module: LoraLayer, adapter_name: str, weight: float) -> None:
    """Makes a layer multiply an adapter's update by `weight`."""
    variant = module.lora_variant.get(adapter_name)
    if isinstance(variant, WeightedDora):
        variant.weight = weight
        weight = 1.0
    module.set_scale(adapter_name, weight)

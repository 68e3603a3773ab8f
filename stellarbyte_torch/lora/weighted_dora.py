"""DoRA whose whole update is multiplied by an adapter's weight, and adds up with other adapters'."""

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant


class WeightedDora(DoraLinearVariant):
    """y = base(x) + … + weight · (dora(x) - base(x)): PEFT's own, to the bit, at weight 1 beside no other adapter.

    PEFT scales A B alone, and norms that were trained would stay in force at weight 0; and it takes what the adapters
    before it have made of y for the base's.
    """

    weight = 1.0

    @staticmethod
    def forward(  # type: ignore[override]  # PEFT's own variants narrow the layer as well
        module: Linear, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        """[..., in], output so far [..., out] -> [..., out]."""
        weight = weight_of(module, active_adapter)
        first = next((name for name in module.active_adapters if name in module.lora_A), active_adapter)
        if weight == 1.0 and active_adapter == first:
            return DoraLinearVariant.forward(module, active_adapter, x, result, **kwargs)
        base = module.base_layer(x.to(module.get_base_weight().dtype)).to(result.dtype)
        return result + weight * (DoraLinearVariant.forward(module, active_adapter, x, base, **kwargs) - base)


def weight_of(module: LoraLayer, adapter_name: str) -> float:
    """What a layer multiplies the whole update of an adapter with; of an adapter without DoRA, 1."""
    return getattr(module.lora_variant.get(adapter_name), "weight", 1.0)


def weigh(module: LoraLayer, adapter_name: str, weight: float) -> None:
    """Let a layer multiply an adapter's update with a weight."""
    variant = module.lora_variant.get(adapter_name)
    if isinstance(variant, WeightedDora):
        variant.weight = weight
        weight = 1.0
    module.set_scale(adapter_name, weight)

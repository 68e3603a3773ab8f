"""Decides which adapters may act at once, and with which weights."""

import math
from collections.abc import Mapping
from typing import Any

from peft import PeftModel

from stellarbyte.errors import UserError
from stellarbyte_torch.lora.modules import lora_layers
from stellarbyte_torch.lora.weighted_dora import WeightedDora


def taking_part(weights: Mapping[str, float]) -> dict[str, float]:
    """The adapters whose weight is not 0."""
    return {name: weight for name, weight in weights.items() if weight}


def check_weights(model: PeftModel, weights: Mapping[str, float]) -> None:
    """Raises UserError if a weight is not finite, or if these adapters cannot be scaled or added up."""
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise UserError(f"the weight of adapter {name!r} is {weight}: give a finite number")
    acting = taking_part(weights)
    configs: dict[str, Any] = {name: model.peft_config[name] for name in acting}
    whole = [name for name, config in configs.items() if config.modules_to_save or config.trainable_token_indices]
    if len(whole) > 1:
        raise UserError(f"adapters {', '.join(whole)} bring whole modules along, which do not add up: activate one")
    for name in whole:
        if acting[name] != 1.0:
            raise UserError(
                f"adapter {name!r} brings whole modules along, which weight {acting[name]} cannot scale: give it 1 or 0"
            )
    for layer in lora_layers(model).values():
        here = [name for name in acting if name in layer.r]
        for name in here if len(here) > 1 or any(acting[name] != 1.0 for name in here) else ():
            if configs[name].use_dora and not isinstance(layer.lora_variant.get(name), WeightedDora):
                kind = type(layer.get_base_layer()).__name__
                raise UserError(
                    f"adapter {name!r} has DoRA on a {kind}, where it neither scales nor adds up: "
                    "activate it alone, at weight 1 or 0"
                )

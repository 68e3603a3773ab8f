"""The one adapter that a compiled model runs. Others are copied into it, so that nothing has to be compiled again."""

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import Conv2d, Linear
from peft.utils.hotswap import hotswap_adapter_from_state_dict

from stellarbyte.errors import UserError
from stellarbyte_torch.lora.config import LoRAConfig
from stellarbyte_torch.lora.modules import lora_layers

SLOT = "compiled_slot"


class CompiledSlot:
    """A PEFT adapter of fixed rank on all modules that the given adapters adapt, filled by PEFT's hot swap.

    Its scaling stays 1: each adapter's scaling and weight are multiplied into the copy of B. Raises UserError if an
    adapter has a higher rank, or is anything other than low-rank factors of linear or Conv2d layers.
    """

    def __init__(self, model: Any, adapters: list[str], rank: int | None) -> None:
        self.model = model
        layers = lora_layers(self.model.get_base_model())
        ranks = {module: [layer.r[name] for name in adapters if name in layer.r] for module, layer in layers.items()}
        self.modules = [module for module, of_module in ranks.items() if of_module]
        self.rank = rank or max(max(ranks[module]) for module in self.modules)
        self.config = LoRAConfig(r=self.rank, lora_alpha=self.rank, target_modules=self.modules, inference_mode=True)
        for name in adapters:
            self.check_fits({name: 1.0})
        self.model.add_adapter(SLOT, self.config)
        self.model.base_model.enable_adapter_layers()
        self.model.base_model.set_adapter(SLOT, inference_mode=True)
        self.model.active_adapter = SLOT

    def check_fits(self, weights: Mapping[str, float]) -> None:
        """Raises UserError if the slot cannot hold the adapters together."""
        for name in weights:
            config = self.model.peft_config[name]
            for field in ("activation", "use_dora", "modules_to_save", "target_parameters", "lora_bias"):
                if getattr(config, field, None):
                    raise UserError(
                        f"adapter {name!r} sets {field}, which a compiled slot cannot imitate: use it uncompiled"
                    )
        for module, layer in lora_layers(self.model.get_base_model()).items():
            ranks = [layer.r[name] for name in weights if name in layer.r]
            if not ranks:
                continue
            if not isinstance(layer, Linear | Conv2d):
                kind = type(layer.get_base_layer()).__name__
                raise UserError(f"{module} is a {kind}: a compiled slot holds linear and Conv2d layers' adapters only")
            if module not in self.modules:
                raise UserError(f"the compiled slot has no place at {module}: register that adapter before compile()")
            if sum(ranks) > self.rank:
                raise UserError(
                    f"rank {sum(ranks)} at {module} exceeds the compiled slot's {self.rank}: give compile() more"
                )

    def fill(self, weights: Mapping[str, float]) -> None:
        """Makes the slot equal to the adapters' weighted sum; without adapters, to 0."""
        factors: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for module, layer in lora_layers(self.model.get_base_model()).items():
                names = [name for name in weights if name in layer.lora_A]
                if not names:
                    continue
                key = f"base_model.model.{module}.lora_{{}}.{SLOT}.weight"
                factors[key.format("A")] = torch.cat([layer.lora_A[name].weight for name in names])
                factors[key.format("B")] = torch.cat(
                    [layer.lora_B[name].weight * (layer.scaling[name] * weights[name]) for name in names], dim=1
                )
            hotswap_adapter_from_state_dict(self.model, factors, SLOT, self.config)

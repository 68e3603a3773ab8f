"""The door to LoRA: everything a user of adapters imports, with PEFT as the engine behind it."""

from stellarbyte_torch.lora_adapters import apply_lora_to_model, load_lora
from stellarbyte_torch.lora_config import LoRAConfig
from stellarbyte_torch.lora_manager import LoRAManager
from stellarbyte_torch.lora_merging import MergeDrift, merge_and_save
from stellarbyte_torch.lora_optimizer import lora_optimizer
from stellarbyte_torch.lora_regularisation import regularisation

__all__ = [
    "LoRAConfig",
    "LoRAManager",
    "MergeDrift",
    "apply_lora_to_model",
    "load_lora",
    "lora_optimizer",
    "merge_and_save",
    "regularisation",
]

"""The public interface to LoRA: everything a user of adapters imports. PEFT does the work behind it."""

from stellarbyte_torch.lora.adapters import apply_lora_to_model, load_lora
from stellarbyte_torch.lora.config import LoRAConfig
from stellarbyte_torch.lora.manager import LoRAManager
from stellarbyte_torch.lora.merging import MergeDrift, merge_and_save
from stellarbyte_torch.lora.optimizer import lora_optimizer
from stellarbyte_torch.lora.regularisation import regularisation

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

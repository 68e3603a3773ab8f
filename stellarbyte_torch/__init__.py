"""StellarByte's showroom: the model as a Hugging Face user receives it.

After `import stellarbyte_torch`, AutoConfig, AutoModel and AutoModelForCausalLM know model_type "stellarbyte".
"""

from typing import TYPE_CHECKING, Any

from stellarbyte_torch.auto_classes import register_with_transformers

if TYPE_CHECKING:
    from stellarbyte_torch.chat.memory_model import MemoryModel
    from stellarbyte_torch.configuration_stellarbyte import ByteConfig
    from stellarbyte_torch.lora.config import LoRAConfig
    from stellarbyte_torch.modeling_stellarbyte import ByteDecoder, ByteForCausalLM, ByteModel

__all__ = ["ByteConfig", "ByteDecoder", "ByteForCausalLM", "ByteModel", "LoRAConfig", "MemoryModel"]

register_with_transformers()


def __getattr__(name: str) -> Any:
    # Names load on first use: `stellarbyte --help` need not wait for torch and transformers.
    if name == "ByteConfig":
        from stellarbyte_torch.configuration_stellarbyte import ByteConfig

        return ByteConfig
    if name == "LoRAConfig":
        from stellarbyte_torch.lora.config import LoRAConfig

        return LoRAConfig
    if name == "MemoryModel":
        from stellarbyte_torch.chat.memory_model import MemoryModel

        return MemoryModel
    if name in __all__:
        from stellarbyte_torch import modeling_stellarbyte

        return getattr(modeling_stellarbyte, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

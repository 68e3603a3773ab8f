"""StellarByte: decoder language models, pretrained in JAX, used and fine-tuned in PyTorch.

This package is the ground that both wings stand on; it needs no framework. ByteConfig, ByteModel and the other names
of `__all__` are PyTorch's, from stellarbyte_torch, and are imported when they are asked for. JAX's models of the same
names are in stellarbyte_jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stellarbyte_torch import ByteConfig, ByteDecoder, ByteForCausalLM, ByteModel, LoRAConfig, MemoryModel

__all__ = ["ByteConfig", "ByteDecoder", "ByteForCausalLM", "ByteModel", "LoRAConfig", "MemoryModel"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return from_torch("stellarbyte_torch", name)


def from_torch(module: str, name: str) -> Any:
    """A name of one of PyTorch's modules. Raises ImportError with what to install: PyTorch's libraries are missing."""
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{name} is PyTorch's, and {error.name} is not installed: pip install 'stellarbyte[torch]', or take JAX's "
            "from stellarbyte_jax"
        ) from error

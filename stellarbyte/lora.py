"""LoRA in PyTorch by its short name: `from stellarbyte.lora import apply_lora_to_model` is stellarbyte_torch.lora's."""

from typing import TYPE_CHECKING, Any

from stellarbyte import from_torch

if TYPE_CHECKING:
    from stellarbyte_torch.lora import *  # noqa: F403


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return from_torch("stellarbyte_torch.lora", name)

"""Checks adapters' names, which PEFT makes attributes of modules and parts of every key."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from stellarbyte.errors import UserError, shown

RESERVED = ("__base__", "compiled_slot")
_TAKEN = {*dir(nn.ModuleDict()), *dir(nn.ParameterDict()), *vars(nn.ModuleDict()), *vars(nn.ParameterDict())}
_MOST_CHARACTERS = 100


def check_adapter_name(name: Any, keys: Iterable[str]) -> None:
    """Raises UserError if PEFT could not hold or save the name, or tell it from the parts of the base's own `keys`."""
    parts = {part for key in keys for part in key.split(".")}
    if not isinstance(name, str) or not name.strip() or len(name) > _MOST_CHARACTERS:
        why = f"it is no text of 1 to {_MOST_CHARACTERS} characters"
    elif any(character in "./\\" or not character.isprintable() for character in name):
        why = "PyTorch's modules and PEFT's folders allow no dot, slash or control character in it"
    elif name in RESERVED:
        why = "it is in use for something else"
    elif name in _TAKEN:
        why = "PyTorch's modules have an attribute of that name"
    elif name in parts or name.startswith("lora_"):
        why = "a part of the model is called so, and in PEFT's keys the two could not be told apart"
    else:
        return
    near = near_name(name)
    near = f"{near}_adapter" if near in parts else near
    raise UserError(f"{shown(name)} cannot name an adapter, as {why}: choose another, such as {near!r}")


def near_name(text: Any) -> str:
    """A possible adapter name that is as close to the text as can be."""
    kept = "".join(character if character.isalnum() or character in "_-" else "_" for character in str(text)[:60])
    kept = kept.strip("_").removeprefix("lora_") or "adapter"
    return f"{kept}_adapter" if kept in _TAKEN or kept in RESERVED or f"__{kept}__" in RESERVED else kept

"""A memory for a model: a store of texts with search, deletion that is final, and a gate before anything is written.

`from stellarbyte.memory import Memory` is the one door. The names of `__all__` are imported when they are asked for,
because a command's help needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stellarbyte.memory.entries import Decision, Entry, Found
    from stellarbyte.memory.memory import Memory
    from stellarbyte.memory.settings import MemorySettings

__all__ = ["Decision", "Entry", "Found", "Memory", "MemorySettings"]

_ROOMS = {"Memory": "memory", "MemorySettings": "settings"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS.get(name, 'entries')}"), name)

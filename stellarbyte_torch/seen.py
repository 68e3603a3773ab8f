"""Tells which devices torch sees here, and what it was built for."""

from typing import Any

import torch


def devices() -> dict[str, Any]:
    """What torch was built for, whether it can use it, and its devices with their memory in bytes."""
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        found.append({"kind": properties.name, "memory_bytes": properties.total_memory, "capability": capability})
    if torch.backends.mps.is_available():
        found.append({"kind": "Apple GPU (mps)", "memory_bytes": None, "capability": None})
    return {
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cuda_usable": torch.cuda.is_available(),
        "cudnn": torch.backends.cudnn.version(),
        "devices": found,
        "threads": torch.get_num_threads(),
    }

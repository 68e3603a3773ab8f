"""The versions of what a result depends on, for its report."""

import platform
from importlib.metadata import version

# Of what quantised folders are made and measured by.
QUANTISING = ("stellarbyte", "torch", "transformers", "compressed-tensors")


def versions_of(*libraries: str) -> dict[str, str]:
    """Python's version, and that of each library."""
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}

"""Tells which libraries are installed, by the extras of StellarByte's own metadata."""

import re
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PACKAGE = "stellarbyte"

# The extra of those that work on StellarByte itself; what it needs is no user's concern.
DEVELOPMENT = "dev"

# What comes along with others and is what a report of a bug is about, more often than not.
_BESIDE = (
    "jaxlib",
    "jax-cuda12-pjrt",
    "jax-cuda13-plugin",
    "triton",
    "nvidia-cudnn-cu12",
    "accelerate",
    "bitsandbytes",
)
_EXTRA = re.compile(r"\bextra == [\"']([\w.-]+)[\"']")


def installed(name: str) -> str | None:
    """The version of a distribution; None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> dict[str, "list[Requirement]"]:
    """Extra -> its requirements; "" for those of the package alone. Empty if StellarByte itself is not installed.

    What an extra takes of another of ours is not repeated.
    """
    try:
        lines = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return {}
    return by_extra(lines)


def by_extra(lines: Iterable[str]) -> dict[str, "list[Requirement]"]:
    """The same for requirements as a distribution's metadata writes them."""
    from packaging.requirements import Requirement

    found: dict[str, list[Requirement]] = {"": []}
    for requirement in map(Requirement, lines):
        extra = "" if requirement.marker is None else _extra(str(requirement.marker))
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue  # for another system or Python
        listed = found.setdefault(extra, [])
        if requirement.name != PACKAGE:
            listed.append(requirement)
    return found


def versions() -> dict[str, dict[str, str | None]]:
    """Extra -> library -> version, None if it is not installed; "base" for the package alone, "beside" for others."""
    found = {
        extra or "base": {name: installed(name) for requirement in listed for name in _brought(requirement)}
        for extra, listed in requirements().items()
        if extra != DEVELOPMENT
    }
    beside = {name: version for name in _BESIDE if (version := installed(name)) is not None}
    return found | {"beside": dict(beside)}


def _brought(requirement: "Requirement") -> list[str]:
    """What a requirement is about: of jax[tpu] it is what JAX's extra brings, as JAX itself is in our extra `jax`."""
    if not requirement.extras or installed(requirement.name) is None:
        return [requirement.name]
    of_library = by_extra(metadata.requires(requirement.name) or [])
    names = [each.name for extra in sorted(requirement.extras) for each in of_library.get(extra, ())]
    return [name for name in names if name.startswith(("jax-", "libtpu"))] or [requirement.name]


def _extra(marker: str) -> str:
    found = _EXTRA.search(marker)
    return "" if found is None else found[1]

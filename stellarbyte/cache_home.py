"""Names the folder of the user's caches."""

from collections.abc import Mapping
from pathlib import Path


def cache_home(environment: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME, or ~/.cache. Raises RuntimeError if it is the latter and the user has no home."""
    # The XDG base directory specification says that a relative path is ignored.
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"

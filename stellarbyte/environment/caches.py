"""Tells where the caches are that StellarByte and its libraries fill, and how large they are."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stellarbyte.cache_home import cache_home

# What is looked at to tell a cache's size: a hub's cache may be on a slow network disk.
_MOST_FILES, _MOST_SECONDS = 50_000, 1.0


class Cache(NamedTuple):
    """A cache. variable: the environment variable that moves it. writes: who writes into it."""

    name: str
    path: Path
    variable: str
    writes: str


def caches(environment: Mapping[str, str]) -> list[Cache]:
    """The caches, whether they are there or not."""
    try:
        home, user = cache_home(environment), Path.home()
    except RuntimeError:  # a user without a home
        home = user = Path(os.devnull)
    hub = Path(environment.get("HF_HOME") or home / "huggingface")
    rows = (
        ("compiled programs", "JAX_COMPILATION_CACHE_DIR", home / "stellarbyte" / "compiled", "pretrain"),
        ("Hugging Face", "HF_HUB_CACHE", hub / "hub", "transformers"),
        ("torch", "TORCH_HOME", home / "torch", "torch"),
        ("triton", "TRITON_CACHE_DIR", user / ".triton" / "cache", "torch.compile"),
        ("matplotlib", "MPLCONFIGDIR", home / "matplotlib", "plot"),
        ("pip", "PIP_CACHE_DIR", home / "pip", "pip"),
        ("uv", "UV_CACHE_DIR", home / "uv", "uv"),
    )
    return [Cache(name, Path(environment.get(variable) or path), variable, by) for name, variable, path, by in rows]


def told(found: list[Cache]) -> list[dict[str, Any]]:
    """Name, path and size of each; a size that was not counted to its end is a lower bound, and None if there is none.

    All of them together take a second at most.
    """
    deadline = time.monotonic() + _MOST_SECONDS
    rows = []
    for cache in found:
        there = cache.path.is_dir()
        size, whole = _size(cache.path, deadline) if there else (None, True)
        rows.append({"name": cache.name, "path": str(cache.path), "bytes": size, "counted_whole": whole})
    return rows


def _size(folder: Path, deadline: float) -> tuple[int, bool]:
    size = count = 0
    folders = [os.fspath(folder)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_size
        except OSError:  # of another user, or just deleted
            continue
        if count > _MOST_FILES or time.monotonic() > deadline:
            return size, False
    return size, True

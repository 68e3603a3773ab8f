"""Chooses the folder in which JAX keeps compiled programs from one start to the next."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

from stellarbyte.cache_home import cache_home

FOLDER, MAX_SIZE, ENABLED = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_ENABLE_COMPILATION_CACHE",
)

# A train step's program takes less than a megabyte on a CPU, and tens of megabytes on a pod. JAX removes the oldest.
MAX_BYTES = 4 * 2**30


def cache_settings(environment: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    """(variables that make JAX keep programs under the user's cache folder, a remark if it cannot be written).

    Settings that the environment already has stay as they are: another folder, another size, or no cache at all.
    """
    off = environment.get(ENABLED, "").lower() in ("0", "false", "f", "no", "n", "off")
    if FOLDER in environment or off:
        return {}, None
    try:
        folder = cache_home(environment) / "stellarbyte" / "compiled" / machine_name()
        # JAX runs the programs that it finds there, so nobody else may write to this folder.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_unfinished(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = error.strerror if isinstance(error, OSError) else error
        return {}, f"compiled programs are not kept for the next start ({reason}): set {FOLDER} to a folder for them"
    return {FOLDER: str(folder), MAX_SIZE: environment.get(MAX_SIZE, str(MAX_BYTES))}, None


def machine_name() -> str:
    """A name for the kind of CPU. Machines may share a home, and a program compiled for one can crash on another."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            first_core = list(iter(file.readline, "\n"))
    except OSError:  # not Linux
        first_core = []
    kind = [line for line in first_core if line.startswith(("model name", "flags", "Features"))]
    return f"{platform.machine()}-{hashlib.sha256(''.join(kind).encode()).hexdigest()[:8]}"


def _remove_unfinished(folder: Path) -> None:
    """Removes programs that a full disk, a kill or a power cut left unfinished; JAX would fail on them at each start.

    JAX writes KEY-cache, then KEY-atime, and does not write either again while it exists.
    """
    for program in folder.glob("*-cache"):
        finished = program.with_name(program.name.removesuffix("-cache") + "-atime").exists()
        if not finished or program.stat().st_size == 0:
            program.unlink(missing_ok=True)

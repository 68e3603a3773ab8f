"""Where JAX keeps compiled programs from one start to the next."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

FOLDER, MAX_SIZE, ENABLED = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_ENABLE_COMPILATION_CACHE",
)

# A train step's program takes less than a megabyte on a CPU, and some tens on a pod: of many runs, the newest stay.
MAX_BYTES = 4 * 2**30


def cache_settings(environment: Mapping[str, str]) -> tuple[dict[str, str], str | None]:
    """(variables that make JAX keep programs under the user's cache folder, a remark if it cannot be written).

    What the environment says itself stands: another folder, another size, or that there shall be no cache.
    """
    off = environment.get(ENABLED, "").lower() in ("0", "false", "f", "no", "n", "off")
    if FOLDER in environment or off:
        return {}, None
    try:
        folder = _cache_home(environment) / "stellarbyte" / "compiled" / machine_name()
        # JAX runs what it finds there: nobody else may write to it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_unfinished(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(None, "Permission denied")
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        reason = error.strerror if isinstance(error, OSError) else error
        return {}, f"compiled programs are not kept for the next start ({reason}): set {FOLDER} to a folder for them"
    return {FOLDER: str(folder), MAX_SIZE: environment.get(MAX_SIZE, str(MAX_BYTES))}, None


def _cache_home(environment: Mapping[str, str]) -> Path:
    # By the XDG base directory specification, a relative path counts for nothing.
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def machine_name() -> str:
    """The kind of CPU: a home may be shared by several, and what was compiled for one can crash on another."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            first_core = list(iter(file.readline, "\n"))
    except OSError:  # not Linux
        first_core = []
    kind = [line for line in first_core if line.startswith(("model name", "flags", "Features"))]
    return f"{platform.machine()}-{hashlib.sha256(''.join(kind).encode()).hexdigest()[:8]}"


def _remove_unfinished(folder: Path) -> None:
    """Takes out programs that a full disk, a kill or a power cut has left unfinished: JAX would trip at each start.

    It writes KEY-cache, then KEY-atime, and neither again while they are there.
    """
    for program in folder.glob("*-cache"):
        finished = program.with_name(program.name.removesuffix("-cache") + "-atime").exists()
        if not finished or program.stat().st_size == 0:
            program.unlink(missing_ok=True)

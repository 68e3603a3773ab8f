"""Tells what the machine is: system, processor, memory, free disk."""

import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stellarbyte.host_memory import system_memory
from stellarbyte.processor import processor_name


def machine() -> dict[str, Any]:
    """System, processor, cores, load and memory in bytes; a limit where the container or the job has one."""
    memory = system_memory()
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "libc": " ".join(filter(None, platform.libc_ver())) or None,
        "container": _container(),
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cores_limit": _core_limit(),
        "load": [round(each, 2) for each in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "memory_bytes": memory.get("MemTotal"),
        "memory_free_bytes": memory.get("MemAvailable"),
        "memory_limit_bytes": _memory_limit(),
        "swap_bytes": memory.get("SwapTotal"),
    }


def disks(folders: Iterable[tuple[str, Path]]) -> list[dict[str, Any]]:
    """Of each named folder: the path of it or of the nearest folder above that there is, and its disk's bytes."""
    found: list[dict[str, Any]] = []
    for name, folder in folders:
        there = nearest(folder)
        try:
            usage = shutil.disk_usage(there)
        except OSError as error:
            found.append({"name": name, "path": str(there), "error": error.strerror})
            continue
        found.append({"name": name, "path": str(there), "bytes": usage.total, "free_bytes": usage.free})
    return found


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next((each for each in (folder, *folder.parents) if each.is_dir()), folder)


def _memory_limit() -> int | None:
    """The memory that control groups allow, of version 2 or 1; None without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        word = next(iter(_lines(path)), "").strip()
        if word.isdecimal():
            return int(word) if int(word) < 1 << 60 else None
    return None


def _core_limit() -> float | None:
    """The cores' worth of time that control groups allow; None without a limit."""
    quota, _, period = next(iter(_lines("/sys/fs/cgroup/cpu.max")), "").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _container() -> str | None:
    for path, name in (("/.dockerenv", "docker"), ("/run/.containerenv", "podman"), ("/.singularity.d", "apptainer")):
        if Path(path).exists():
            return name
    return "wsl" if "microsoft" in platform.release().lower() else None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []

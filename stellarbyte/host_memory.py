"""Measures memory on the host: this process's own, and what is free."""

import os
import sys
from pathlib import Path

if sys.platform != "win32":
    import resource


def resident_bytes() -> int | None:
    """Bytes of memory that the process holds now; None where the system does not say so in a file, as Linux does."""
    try:
        with Path("/proc/self/statm").open("rb", buffering=0) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def peak_resident_bytes() -> int | None:
    """The most bytes that the process has ever held; None on Windows."""
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes() -> int | None:
    """Bytes that a process may take without swapping; None where the system does not say so, as Linux does."""
    return system_memory().get("MemAvailable")


def system_memory() -> dict[str, int]:
    """Bytes by the names of Linux's /proc/meminfo, such as MemTotal; elsewhere MemTotal alone, or nothing."""
    found = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if value.strip().endswith("kB"):
                found[name] = int(value.split()[0]) * 1024
    except OSError:
        pass
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["MemTotal"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found

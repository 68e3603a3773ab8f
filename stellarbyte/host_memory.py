"""Measures this process's memory on the host."""

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

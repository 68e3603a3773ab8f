"""The name of this machine's processor."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Its name as the system tells it, or at least its kind."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "a processor"

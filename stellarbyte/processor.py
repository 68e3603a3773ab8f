"""The name of this machine's processor."""

import platform
from pathlib import Path


def processor_name() -> str | None:
    """Its name as the system tells it; None where it does not."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or None

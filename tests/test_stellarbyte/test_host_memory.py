"""The process's own memory, beside what the kernel says of it elsewhere."""

import re
from pathlib import Path

import pytest

from stellarbyte.host_memory import peak_resident_bytes, resident_bytes


def test_memory_is_what_the_kernel_says() -> None:
    now, peak = resident_bytes(), peak_resident_bytes()
    status = Path("/proc/self/status").read_text()
    resident, highest = (int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    assert now == pytest.approx(resident, rel=0.05)
    assert peak == pytest.approx(highest, rel=0.05)

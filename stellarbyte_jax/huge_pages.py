"""Huge pages for the scratch memory of XLA's CPU programs."""

import os
import sys

# XLA takes a program's scratch anew from malloc for every call, and with it hundreds of thousands of page faults: in
# huge pages a training step is about a tenth faster. glibc reads its tunables only when a process starts.
TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def restart_with_huge_pages() -> None:
    """Replace this process by the same command with TUNABLES set; nothing where they are set, or off Linux."""
    if sys.platform == "linux" and not TUNABLES.keys() & os.environ.keys():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **TUNABLES})

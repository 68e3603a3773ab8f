"""Has what is freed go back to the system, so that a process holds no more memory than it uses."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h

# Allocations from this size on are pages of their own.
_LARGE_BYTES = 1 << 20


def give_back_large() -> None:
    """Tells the C library to give each large array back at once when it is freed.

    By itself glibc keeps arrays of up to 32 MiB in a heap of each thread that has freed one: those of a model's layers,
    read by many threads, came to hundreds of megabytes that nobody used. Other C libraries are left as they are.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)

"""Tells the C library what becomes of memory that is freed: it goes back to the system, or is kept for what comes."""

import ctypes

# Of glibc's malloc.h. Other C libraries are left as they are.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

# Allocations from this size on are pages of their own, and go back to the system when they are freed.
_LARGE_BYTES = 1 << 20

# The most that is kept at the end of the heap, beyond what is in use.
_MOST_KEPT = 512 << 20

_NO_BOUND = 2**31 - 1


def give_back_large() -> None:
    """Has each large array go back to the system at once when it is freed.

    By itself glibc keeps arrays of up to 32 MiB in a heap of each thread that has freed one: those of a model's layers,
    read by many threads, came to hundreds of megabytes that nobody used. What is smaller shares one heap, so that a
    thread's can serve another.
    """
    _set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    _set_option(_M_ARENA_MAX, 1)


def keep_freed() -> None:
    """Has what is freed stay in one heap, from which later arrays are taken; it is called before threads begin.

    A page that is fresh from the system is cleared when it is first touched. A conversion, which makes an array of each
    tensor and frees it soon, spent more time on that than on any of its own work.
    """
    _set_option(_M_MMAP_THRESHOLD, _NO_BOUND)
    _set_option(_M_TRIM_THRESHOLD, _MOST_KEPT)
    _set_option(_M_ARENA_MAX, 1)


def _set_option(option: int, value: int) -> None:
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(option, value)

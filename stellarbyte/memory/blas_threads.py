"""Keeps NumPy's matrix products in one thread, where several would wait for each other longer than they work."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.linalg  # noqa: F401 - loads the library that is limited
from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_limited: Any = None


@functools.cache
def _libraries() -> ThreadpoolController:
    """The libraries in this process that compute in threads of their own, NumPy's among them."""
    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, NumPy's products are computed in one thread, in all threads of the process.

    OpenBLAS's threads spin while they wait for each other. On two cores that other processes use too, the eigenvalues
    of a matrix of 256 rows take them 0.1 to 3 s, and one thread 0.02 s (docs/tried.md).
    """
    global _inside, _limited
    with _lock:
        if not _inside:
            _limited = _libraries().limit(limits=1, user_api="blas")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _limited.restore_original_limits()

"""Keeps NumPy's matrix products in one thread, where several would wait for each other longer than they work."""

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy.linalg  # noqa: F401 - loads the library

_lock = threading.Lock()
_inside, _before = 0, 0


def _of_openblas() -> tuple[Callable[[], int], Callable[[int], None]] | None:
    """What tells and sets the number of threads of the OpenBLAS in NumPy's wheels; None: NumPy has another library."""
    module = sys.modules.get("numpy.linalg._umath_linalg")
    if module is None or module.__file__ is None:
        return None
    try:
        library = ctypes.CDLL(module.__file__)
        return library.scipy_openblas_get_num_threads64_, library.scipy_openblas_set_num_threads64_
    except (OSError, AttributeError):
        return None


_THREADS = _of_openblas()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within it, NumPy works in one thread, in all threads of the process; with other libraries nothing changes.

    OpenBLAS's threads spin while they wait for each other. On two cores that other processes use too, the eigenvalues
    of a matrix of 256 rows take them 0.1 to 3 s, and one thread 0.02 s (docs/tried.md).
    """
    global _inside, _before
    if _THREADS is None:
        yield
        return
    tell, set_to = _THREADS
    with _lock:
        if not _inside:
            _before = tell()
            set_to(1)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                set_to(_before)

"""Keeps from the terminal what Orbax and TensorStore print there."""

import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def quieten_orbax() -> None:
    """Keeps Orbax's log from the terminal: nobody can act on its warnings, and its errors reach us as exceptions.

    Orbax has to be imported before: only a logger of absl's own tells where a record is from.
    """
    logging.getLogger("absl").addFilter(_not_from_orbax)
    logging.getLogger("asyncio").addFilter(_not_of_an_abandoned_read)
    # After a failed save, TensorStore's threads still report to its event loop, which is closed, at any later moment.
    if not isinstance(sys.unraisablehook, _LeavingOutClosedLoops):
        sys.unraisablehook = _LeavingOutClosedLoops(sys.unraisablehook)


class _LeavingOutClosedLoops:
    """A hook for exceptions that nobody can catch; it ignores those about closed event loops."""

    def __init__(self, hook: Callable[[Any], Any]) -> None:
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"):
            self._hook(unraisable)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _not_of_an_abandoned_read(record: logging.LogRecord) -> bool:
    # Arrays are read together, and the first that fails is raised; the errors of the others reach the log later.
    return "exception was never retrieved" not in str(record.msg)


@contextmanager
def tensorstore_silenced() -> Iterator[None]:
    """Silences the tracebacks that arrays print past every handler when another array, read with them, has failed."""
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda *_: None
    sys.unraisablehook = lambda _: None
    try:
        yield
    except Exception:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            gc.collect()  # the abandoned coroutines, which would warn later
        time.sleep(0.2)  # their reads end in TensorStore's own threads
        raise
    finally:
        sys.excepthook, sys.unraisablehook = hooks

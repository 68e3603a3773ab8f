"""Turns the abort() by which JAX's client ends this process, when another one has died, into a call of ours.

The client writes a page of C++'s log and calls abort(). JAX offers no callback before that which works from Python.
SIGABRT is raised inside abort(), in a thread of the client's own, so its handler may be an ordinary function.
"""

import ctypes
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

_ABORT = "JAX distributed service detected fatal errors"

# An entry of C++'s log begins with the name of a source file; the lines after it that name none belong to it.
_LOGGED = re.compile(rb"[IWEF]\d{4} [\d:.]+ +\d+ (\w+)\.\w+:\d+\]")
_OF_THE_CLIENT = (b"client", b"coordination_service", b"coordination_service_agent", b"preemption_sync_manager")

_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers = list[Any]()  # C calls these, so Python must not free them


def call_at_abort(then: Callable[[str], None]) -> Callable[[], None]:
    """Calls `then`, which must not return, when JAX's client ends this process; its argument is what the client wrote.

    Everything else that C++ writes to stderr is shown at once, and any other abort still aborts.

    Returns:
        A function that installs the SIGABRT handler again, after another library has replaced it.
    """
    reading, writing = os.pipe()
    shown = keep_from_native_code("stderr", writing)
    held = list[bytes]()

    def show() -> None:
        holding = False
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if logged := _LOGGED.match(line):
                    holding = logged[1] in _OF_THE_CLIENT
                if holding:
                    held.append(line)
                    continue
                with suppress(OSError):  # nobody is there to read it
                    os.write(shown, line)

    shower = threading.Thread(target=show, name="stderr", daemon=True)
    shower.start()

    @_Handler
    def handle(number: int) -> None:
        os.dup2(shown, 2)  # the pipe comes to its end
        shower.join(1)
        said = b"".join(held).decode(errors="replace")
        if _ABORT in said:
            then(said)
        os.write(shown, said.encode())
        libc.signal(number, _Handler(0))  # the default, with which abort() goes on

    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, _Handler), ctypes.c_void_p
    _handlers.append(handle)

    def catch() -> None:
        libc.signal(signal.SIGABRT, handle)

    catch()
    return catch


def keep_from_native_code(name: str, instead: int) -> int:
    """Gives Python's stdout or stderr a new descriptor, which is returned; C++'s output then goes to `instead`."""
    stream = getattr(sys, name)
    stream.flush()
    ours, theirs = os.dup(stream.fileno()), stream.fileno()
    os.dup2(instead, theirs)
    os.close(instead)
    buffering = 1 if stream.line_buffering or stream.write_through else -1
    setattr(sys, name, os.fdopen(ours, "w", buffering, encoding=stream.encoding, errors=stream.errors))
    return ours

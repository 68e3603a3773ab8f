"""Ctrl-C and SIGTERM, turned into a question that the training loop asks between two steps."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; a second one raises KeyboardInterrupt.

    The loop that sees `requested` after a step saves and leaves. Leaving the context restores the earlier handlers. In
    a thread other than the main one, where Python allows no handlers, entering changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        name = signal.Signals(number).name
        message = f"\nstellarbyte: {name}: finishing this step, then saving; once more to stop at once\n"
        # Past Python's buffers: a handler may run in the middle of somebody's print, whose buffer is then locked.
        os.write(2, message.encode())

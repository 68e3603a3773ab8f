"""Handles Ctrl-C, SIGTERM, SIGUSR1 and a closed terminal: they end a program at once, or make it save and stop."""

import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

# SIGHUP comes when the terminal is closed or the connection is lost, SIGUSR1 when a SLURM job nears its end; Windows
# has neither.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
_HANGUP = getattr(signal, "SIGHUP", None)

# For each signal, how many the work itself has handled; the watching thread must not answer these as well.
_taken: Counter[int] = Counter()


class Interrupted(KeyboardInterrupt):
    """A signal has ended the work; `number` is the signal's, and `state` says in words what is left, if anything."""

    def __init__(self, number: int, state: str = "") -> None:
        super().__init__(signal.Signals(number).name)
        self.number, self.state = number, state


def exit_code(number: int | None) -> int:
    """The exit code of a process that a signal has ended, even if it saved its work: 128 plus the signal's number.

    That is 129 after SIGHUP, 130 after Ctrl-C, 138 after SIGUSR1, 143 after SIGTERM. None stands for Python's own
    KeyboardInterrupt, which carries no number and comes from Ctrl-C.
    """
    return 128 + (signal.SIGINT if number is None else number)


def ending(program: str, number: int | None, state: str = "") -> str:
    """The line that a program prints when a signal has ended it; it names the signal unless that was Ctrl-C's."""
    by = "" if number in (None, signal.SIGINT) else f" by {signal.Signals(number).name}"
    return f"{program}: interrupted{by}" + (f": {state}" if state else "")


class AtOnce:
    """A handler that ends the process, called by whichever thread notices the signal first."""

    def __init__(self, leave: Callable[[Interrupted], NoReturn]) -> None:
        self._leave = leave
        self._taken = threading.Lock()

    def __call__(self, number: int, frame: FrameType | None = None) -> None:  # noqa: ARG002 - a handler's signature
        """Ends the process."""
        self.leave(Interrupted(number))

    def leave(self, interrupted: Interrupted) -> NoReturn:
        """Ends the process, and says what is left."""
        if not self._taken.acquire(blocking=False):
            threading.Event().wait()  # another thread is ending it
        self._leave(interrupted)


def leave_at_once(program: str) -> None:
    """Makes each of the signals end the process with one line and the shell's exit code, whatever the process is doing.

    Python runs signal handlers in the main thread, between two instructions. They have to wait while a compiler runs,
    and an exception from one may be lost in a callback or turned into another by an import. Therefore a separate thread
    also watches for signals. Work that has something to save or tidy up takes over the signals for its time, by
    `Interrupt` or `interruptible`.
    """

    if _leaves_at_once():
        return  # the door has already called this

    def leave(interrupted: Interrupted) -> NoReturn:
        _say(ending(program, interrupted.number, interrupted.state))
        os._exit(exit_code(interrupted.number))

    take_signals(AtOnce(leave))
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_signals)
    if hasattr(signal, "pthread_sigmask"):  # signals that `hold_signals` has held back arrive now
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def hold_signals() -> None:
    """Holds back the signals while a program starts itself anew, until the new program calls `leave_at_once`."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def leave_by(leave: Callable[[Interrupted], NoReturn]) -> None:
    """Makes signals end the process by `leave` if they end it at once so far."""
    if _leaves_at_once():
        take_signals(AtOnce(leave))


def _leaves_at_once() -> bool:
    return any(isinstance(signal.getsignal(number), AtOnce) for number in SIGNALS)


def _watch(reading: int) -> None:
    came: Counter[int] = Counter()
    while True:
        for number in os.read(reading, 64):
            came[number] += 1
            handler = signal.getsignal(number)
            asked = getattr(handler, "__self__", None)
            if isinstance(asked, Interrupt):
                asked.notice(number)
            elif isinstance(handler, AtOnce) and came[number] > _taken[number]:
                handler(number)


def take_signals(handler: Any) -> dict[int, Any]:
    """Sets a handler for all the signals, and returns the earlier ones; does nothing outside the main thread."""
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handlers
        return {}
    before = {}
    for number in SIGNALS:
        # A user who starts a program by `nohup` wants it to outlive the terminal.
        if number == _HANGUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        before[number] = signal.signal(number, handler)
    return before


def _forget_signals() -> None:
    """Resets the signals in a forked child, which shares its parent's pipe and must not answer for the parent."""
    for number in SIGNALS:
        if isinstance(signal.getsignal(number), AtOnce):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.set_wakeup_fd(-1)


def give_back(handlers: dict[int, Any]) -> None:
    """Restores the handlers that `take_signals` has returned."""
    for number, handler in handlers.items():
        # None stands for a handler that was not set from Python and cannot be put back.
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes the first signal in the block raise Interrupted, for work that tidies up; a second one acts as before.

    The signal is not lost even if the exception is: if a callback swallows Interrupted, it is raised again, and if it
    has been turned into another exception, the block still ends with Interrupted.
    """
    handlers: dict[int, Any] = {}
    came: list[int] = []

    def raise_it(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - a handler's signature
        came.append(number)
        _taken[number] += 1
        give_back(handlers)
        raise Interrupted(number)

    def once_more(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            unraisable_before(unraisable)
            return
        # It is raised a little later, because the callback would swallow it again.
        signal.signal(number := unraisable.exc_value.number, raise_it)
        threading.Timer(0.02, os.kill, (os.getpid(), number)).start()

    unraisable_before, sys.unraisablehook = sys.unraisablehook, once_more
    handlers |= take_signals(raise_it)
    try:
        yield
    finally:
        give_back(handlers)
        sys.unraisablehook = unraisable_before
        if came and not isinstance(sys.exc_info()[1], Interrupted):
            raise Interrupted(came[0])


class Interrupt:
    """In this context the first signal only sets `requested` and `number`; a second one acts as before.

    A loop that sees `requested` saves and leaves. Leaving the context restores the earlier handlers. It may be entered
    again; a signal that came before is then the first one. In a thread other than the main one, where Python allows no
    handlers, entering changes nothing. program: the name at the beginning of the message to the user; None for no
    message.

    In a program of its own, signals are also noticed while the main thread is in a compiler or waits for a device:
    see `leave_at_once`.
    """

    def __init__(self, program: str | None = "stellarbyte") -> None:
        self.program = program
        self.requested = False
        self.number: int | None = None
        self._before: dict[int, Any] = {}
        self._first = threading.Lock()  # held by whoever answers the first signal
        self._noticed = 0
        self._asked, self._left = threading.Event(), threading.Event()

    def __enter__(self) -> Self:
        if self._left.is_set():
            self._asked, self._left = threading.Event(), threading.Event()
        self._before = take_signals(self._handle)
        if self.requested:  # in an earlier block
            self._asked.set()
            self._leave_to_others()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        give_back(self._before)
        self._before = {}
        self._left.set()
        self._asked.set()

    def give_up_after(self, seconds: float | None, give_up: Callable[[], str]) -> None:
        """Ends the process if the context is not left within `seconds` of the first signal; None for no bound.

        Only a program of its own is ended. give_up: called before that, in another thread; it tidies up, and says what
        is left.
        """
        if seconds is None:
            return

        asked, left = self._asked, self._left  # of this block

        def watch() -> None:
            asked.wait()
            if left.wait(seconds) or self.number is None:
                return
            at_once = self._before.get(self.number)
            if isinstance(at_once, AtOnce):
                at_once.leave(Interrupted(self.number, give_up()))

        threading.Thread(target=watch, name="grace", daemon=True).start()

    def notice(self, number: int) -> None:
        """Answers a signal in the watching thread, as the main thread may not come to it for long."""
        self._noticed += 1
        at_once = self._before.get(number)
        if self._noticed == 1:
            self._request(number)
        elif number != _HANGUP and isinstance(at_once, AtOnce):
            at_once(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        _taken[number] += 1
        self._leave_to_others()
        self._request(number)

    def _leave_to_others(self) -> None:
        # A closing terminal sends SIGHUP more than once, as shells do, so even a second one only asks.
        give_back({other: handler for other, handler in self._before.items() if other != _HANGUP})

    def _request(self, number: int) -> None:
        if not self._first.acquire(blocking=False):
            return
        self.number, self.requested = number, True
        self._asked.set()
        if self.program is not None:
            name = signal.Signals(number).name
            _say(f"{self.program}: {name}: finishing this step, then saving; once more to stop at once")


def _say(text: str) -> None:
    # This goes past Python's buffers: a handler may run in the middle of a print, which then holds the buffer's lock.
    with suppress(OSError):  # the terminal may be gone
        show_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress display had hidden it
        os.write(2, f"{show_cursor}{text}\n".encode())

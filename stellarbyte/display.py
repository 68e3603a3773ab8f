"""Shows what a command is doing: on a terminal in a few live lines with a spinner, elsewhere in plain lines."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import TracebackType
from typing import NoReturn, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from stellarbyte.errors import UserError

_SECONDS_BETWEEN_FRAMES = 0.1


class Display:
    """A context that shows the lines of a long run: its progress, its figures, and what it is doing.

    quiet: whether to show nothing, for all but one of several processes. stderr: whether to use stderr instead of
    stdout. console: another console to use.

    Raises:
        UserError: from `say` and `update`, if the output cannot be written: its reader is gone, or the disk is full.
    """

    def __init__(self, *, quiet: bool = False, stderr: bool = False, console: Console | None = None) -> None:
        self._console = console or _Console(quiet=quiet, stderr=stderr, highlight=False, markup=False)
        self._starting = _Activity("starting")
        self._spinner = Spinner("dots")
        self._began = time.monotonic()
        self._activities: list[_Activity] = []
        self._done = self._total = 0
        self._words: Sequence[str] = ()
        self._seconds_left: float | None = None
        self._entered = 0
        self._ended = threading.Event()
        self._broken: OSError | None = None
        self._live = Live(get_renderable=self._render, console=self._console, auto_refresh=False)

    def silence(self) -> None:
        """Stops showing anything; to be called if it turns out that another process speaks."""
        self._live.stop()
        self._console.quiet = True

    @property
    def live(self) -> bool:
        """Whether the output is a terminal, on which lines change in place."""
        return self._console.is_terminal and not self._console.quiet

    def __enter__(self) -> Self:
        self._entered += 1
        if self.live and self._entered == 1:
            with self._explained():
                self._live.start()
            # Not rich's own thread, which would print a traceback if the terminal is gone.
            threading.Thread(target=self._animate, name="display", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered -= 1
        if self._entered == 0:
            self._ended.set()
            with suppress(OSError):
                self._live.stop()

    def say(self, text: str) -> None:
        """Prints a line above the live ones. On a terminal it is broken only between words."""
        with self._explained():
            # Only words longer than a line are folded; "ignore" would leave line breaks to the terminal.
            self._console.print(text, soft_wrap=not self.live, overflow="fold" if self.live else "ignore", crop=False)

    def begin(self, done: int, total: int) -> None:
        """Ends the start: from now on the live lines show how many of all steps are done."""
        self._done, self._total = done, total

    def update(self, done: int, total: int, words: Sequence[str], seconds_left: float | None) -> None:
        """Shows how many of all steps are done, and figures in `words`, none of which is broken over two lines."""
        self._done, self._total, self._words, self._seconds_left = done, total, words, seconds_left
        if self.live:
            with self._explained():
                self._live.refresh()
        else:
            self.say("  ".join((f"step {done}/{total}", *words, f"ETA {_clock(seconds_left)}")))

    @contextmanager
    def doing(self, what: str) -> Iterator[Callable[[int, int | None], None]]:
        """Shows `what` the run is doing, such as "validating", in the block; yields progress(done, total or None)."""
        activity = _Activity(what)
        self._activities.append(activity)
        try:
            yield activity.progress
        finally:
            self._activities.remove(activity)

    def _animate(self) -> None:
        while not self._ended.wait(_SECONDS_BETWEEN_FRAMES):
            try:
                self._live.refresh()
            except OSError as error:
                self._broken = error
                return

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            if self._broken is not None:
                raise self._broken
            yield
        except OSError as error:
            self._broken = error
            raise UserError(f"the output cannot be written: {error.strerror or error}") from error

    def _render(self) -> RenderableType:
        lines: list[RenderableType] = []
        if self._total:
            head = Table.grid(expand=True, padding=(0, 1))
            for ratio in (None, None, 1, None):
                head.add_column(no_wrap=True, ratio=ratio)
            bar = ProgressBar(total=self._total, completed=self._done)
            times = f"{_clock(time.monotonic() - self._began)}, ETA {_clock(self._seconds_left)}"
            head.add_row(self._spinner, f"step {self._done}/{self._total}", bar, times)
            lines += [head, *(Text(line, no_wrap=True) for line in _filled(self._words, self._console.width))]
            lines += [Text(str(activity), no_wrap=True) for activity in self._activities[-1:]]
        else:
            row = Table.grid(padding=(0, 1))
            row.add_row(self._spinner, str((self._activities or [self._starting])[-1]))
            lines.append(row)
        return Group(*lines)


class _Activity:
    def __init__(self, what: str) -> None:
        self.what = what
        self._began = time.monotonic()
        self._amount = ""

    def progress(self, done: int, total: int | None) -> None:
        self._amount = f" {done}" if total is None else f" {done}/{total}"

    def __str__(self) -> str:
        return f"{self.what}{self._amount} … {_clock(time.monotonic() - self._began)}"


class _Console(Console):
    def on_broken_pipe(self) -> NoReturn:
        """Raises BrokenPipeError again; rich's own method would end the process."""
        raise


def _filled(words: Sequence[str], width: int) -> list[str]:
    """Lines of at most `width` characters that hold the words, none of which is broken."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 2 + len(word) <= width:
            lines[-1] += f"  {word}"
        else:
            lines.append(word)
    return lines


def _clock(seconds: float | None) -> str:
    return "-:--:--" if seconds is None else str(timedelta(seconds=round(seconds)))

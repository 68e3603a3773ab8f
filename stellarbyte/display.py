"""Shows what a command is doing: on a terminal in a few live lines with bars, elsewhere in plain lines."""

import logging
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
# A terminal of fewer columns gets plain lines.
_LEAST_COLUMNS = 60
_STYLES = {"better": "green", "worse": "red"}


class Display:
    """A context that shows the lines of a long run: its progress, its figures, and what it is doing.

    quiet: whether to show nothing, for all but one of several processes. stderr: whether to use stderr instead of
    stdout. console: another console to use. level: the least that is shown, as a level of Python's logging; lines that
    begin with `warning:` are warnings, and all others are of level INFO.

    Raises:
        UserError: from `say` and `update`, if the output cannot be written: its reader is gone, or the disk is full.
    """

    def __init__(
        self, *, quiet: bool = False, stderr: bool = False, console: Console | None = None, level: int = logging.INFO
    ) -> None:
        self._console = console or _Console(quiet=quiet, stderr=stderr, highlight=False, markup=False)
        self._starting = _Activity("starting")
        self._spinner = Spinner("dots")
        self._began = time.monotonic()
        self._activities: list[_Activity] = []
        self._done = self._total = 0
        self._words: Sequence[str] = ()
        self._seconds_left: float | None = None
        self._epoch: tuple[float, float] | None = None
        self._level, self._prefix, self._has_ended = level, "", False
        self._record: Callable[[int, str], None] | None = None
        self._entered = 0
        self._ended = threading.Event()
        self._broken: OSError | None = None
        self._live = Live(get_renderable=self._render, console=self._console, auto_refresh=False)

    def speak_as(self, index: int, *, speaks: bool) -> None:
        """To be called where several processes train: says who speaks, in plain lines, unless that is process 0.

        speaks: whether this process says anything from now on.
        """
        if index or not speaks:
            self._live.stop()
            self._console.quiet, self._prefix = not speaks, f"process {index}: "

    def record_in(self, write: Callable[[int, str], None] | None) -> None:
        """Hands whatever is said to `write` as well, with its level; None for nobody."""
        self._record = write

    @property
    def live(self) -> bool:
        """Whether lines change in place: between entering and leaving, on a terminal that was wide enough then."""
        return self._live.is_started

    def __enter__(self) -> Self:
        self._entered += 1
        shows = not self._console.quiet and not self._prefix and self._level <= logging.INFO
        wide = self._console.is_terminal and self._console.width >= _LEAST_COLUMNS
        if shows and wide and self._entered == 1:
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
        level = logging.WARNING if text.startswith("warning:") else logging.INFO
        self._note(level, text)
        if level >= self._level:
            self._print(self._prefix + text)

    def report(self, line: str, title: str, rows: Sequence[Sequence[str]]) -> None:
        """Prints a table above the live lines; where there are none, `line`, which says the same."""
        if not self.live:
            self.say(line)
            return
        self._note(logging.INFO, line)
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row("", *(Text(cell, style=_STYLES.get(cell.rpartition(" ")[2], "")) for cell in row))
        with self._explained():
            self._console.print(Text(title, style="bold"), table)

    def end(self, text: str) -> None:
        """Prints the last words, and shows no progress after them."""
        self._has_ended = True
        if self.live:
            with self._explained():
                self._live.refresh()
        self.say(text)

    def begin(self, done: int, total: int) -> None:
        """Ends the start: from now on the live lines show how many of all steps are done."""
        self._done, self._total = done, total

    def update(
        self,
        done: int,
        total: int,
        words: Sequence[str],
        seconds_left: float | None,
        epoch: tuple[float, float] | None = None,
    ) -> None:
        """Shows how many of all steps are done, and figures in `words`, none of which is broken over two lines.

        epoch: how many epochs are done, and how many all steps make.
        """
        if self._has_ended:
            return
        self._done, self._total, self._words, self._seconds_left = done, total, words, seconds_left
        self._epoch = epoch
        words = (f"step {done}/{total}", *words, f"ETA {_clock(seconds_left)}")
        self._note(logging.DEBUG, "  ".join(words))
        if self.live:
            with self._explained():
                self._live.refresh()
        elif self._level <= logging.INFO:
            narrow = self._console.is_terminal
            self._print(self._prefix + "\n".join(_filled(words, self._console.width) if narrow else ["  ".join(words)]))

    def _note(self, level: int, text: str) -> None:
        if self._record is not None:
            self._record(level, text)

    def _print(self, text: str) -> None:
        broken = self._console.is_terminal  # only words longer than a line are folded
        with self._explained():
            self._console.print(text, soft_wrap=not broken, overflow="fold" if broken else "ignore", crop=False)

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
        if self._has_ended:
            return Group()
        activity = self._activities[-1] if self._activities else None
        if not self._total:
            row = Table.grid(padding=(0, 1))
            row.add_row(self._spinner, str(activity or self._starting))
            return row
        bars = Table.grid(expand=True, padding=(0, 1))
        for ratio in (None, None, 1, None):
            bars.add_column(no_wrap=True, ratio=ratio)
        times = f"{_clock(time.monotonic() - self._began)}, ETA {_clock(self._seconds_left)}"
        step = f"step {self._done}/{self._total}"
        bars.add_row(self._spinner, step, ProgressBar(total=self._total, completed=self._done), times)
        if self._epoch is not None:
            done, total = self._epoch
            bar = ProgressBar(total=1.0, completed=done % 1)
            bars.add_row("", f"epoch {int(done) + 1}", bar, f"{done:.2f} of {total:.2f}")
        lines: list[RenderableType] = [bars]
        if activity is not None and activity.share is not None:
            bars.add_row("", activity.amount, ProgressBar(total=1.0, completed=activity.share), activity.time)
        elif activity is not None:
            lines.append(Text(str(activity), no_wrap=True))
        lines[1:1] = (Text(line, no_wrap=True) for line in _filled(self._words, self._console.width))
        return Group(*lines)


class _Activity:
    """What is going on beside the steps. share: the part of it that is done; None if that is unknown."""

    def __init__(self, what: str) -> None:
        self.amount = self._what = what
        self.share: float | None = None
        self._began = time.monotonic()

    def progress(self, done: int, total: int | None) -> None:
        self.amount = f"{self._what} {done}" if total is None else f"{self._what} {done}/{total}"
        self.share = done / total if total else None

    @property
    def time(self) -> str:
        return _clock(time.monotonic() - self._began)

    def __str__(self) -> str:
        return f"{self.amount} … {self.time}"


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

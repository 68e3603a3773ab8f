"""Shows a command's progress on stderr: a bar on a terminal, elsewhere a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SECONDS_BETWEEN_LINES = 10.0

# Takes the amount done so far and the whole, or None if the whole is unknown.
Update = Callable[[int, int | None], None]


@contextmanager
def progress(what: str, unit: str = "") -> Iterator[Update]:
    """Yields a function to call with the progress of `what`; `unit` is "B" for bytes."""
    from rich import filesize
    from rich import progress as bars
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        amount_of = filesize.decimal if unit == "B" else str
        yield Lines(what, amount_of, lambda line: console.print(line, highlight=False, soft_wrap=True))
        return
    amount: tuple[bars.ProgressColumn, ...] = (bars.TextColumn("{task.fields[amount]}"),)
    if unit == "B":
        amount = (bars.DownloadColumn(), bars.TransferSpeedColumn())
    times = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn(compact=True))
    columns = (bars.SpinnerColumn(), bars.TextColumn(what), bars.BarColumn(), *amount, *times)
    with bars.Progress(*columns, console=console) as shown:
        task = shown.add_task(what, total=None, amount="")  # the bar moves before the first call, too
        began = False

        def update(done: int, total: int | None) -> None:
            nonlocal began
            amount = f"{done}/{total}" if total else str(done or "")
            if not began:  # work that an interrupted run had done before must not count in the rate
                began = True
                shown.reset(task, completed=done, total=total, amount=amount)
            shown.update(task, completed=done, total=total, amount=amount)

        yield update


class Lines:
    """Writes a line every ten seconds: the progress, and how long the rest will take at this rate.

    amount_of: turns a count into words. clock: gives seconds since any moment.
    """

    def __init__(
        self,
        what: str,
        amount_of: Callable[[int], str],
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._amount_of, self._write, self._clock = what, amount_of, write, clock
        self._first: tuple[float, int] | None = None
        self._last = 0.0

    def __call__(self, done: int, total: int | None) -> None:  # noqa: D102 - as Update
        now = self._clock()
        if self._first is None:
            self._first, self._last = (now, done), now
        if now - self._last < _SECONDS_BETWEEN_LINES:
            return
        self._last = now
        started, done_before = self._first
        words = [f"{self._what}:"]
        if done or total:
            words.append(self._amount_of(done) + (f" of {self._amount_of(total)}" if total else "") + ",")
        if total and done > done_before:
            left = (now - started) * (total - done) / (done - done_before)
            words.append(f"{_time(left)} left")
        else:
            words.append(f"{_time(now - started)} so far")
        self._write(" ".join(words))


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"

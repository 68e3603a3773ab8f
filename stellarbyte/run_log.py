"""Keeps what a run says in its folder, with times and process numbers, so that its story can be read afterwards."""

import logging
import os
import socket
import threading
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.log_settings import LEVELS, LogSettings


class RunLog:
    """While entered, writes into RUN/log.txt what the display says, and what libraries log and warn of.

    The file is made when there is something to write. A run that goes on adds to it. If it cannot be written any more,
    the display says so once and the run goes on. What libraries say is shown as it is without the log.
    """

    def __init__(self, run_dir: str | Path, display: Display, settings: LogSettings, index: int = 0) -> None:
        self._path = Path(run_dir) / ("log.txt" if index == 0 else f"log-{index}.txt")
        self._display, self._index = display, index
        self._level = LEVELS[settings.file_level] if settings.includes(index) else LEVELS["none"]
        self._file: IO[str] | None = None
        self._lock = threading.Lock()
        self._handler = _Handler(self.write)
        self._hook: Callable[..., Any] = warnings.showwarning

    def __enter__(self) -> Self:
        if self._level < LEVELS["none"]:
            self._display.record_in(self.write)
            if not logging.root.handlers and logging.lastResort is not None:
                logging.root.addHandler(logging.lastResort)  # it prints only as long as there is no handler
            logging.root.addHandler(self._handler)
            self._hook, warnings.showwarning = warnings.showwarning, self._warned
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback_: TracebackType | None
    ) -> None:
        if self._level < LEVELS["none"]:
            warnings.showwarning = self._hook
            logging.root.removeHandler(self._handler)
            self._display.record_in(None)
        if self._file is not None:
            if isinstance(error, UserError):
                self.write(LEVELS["error"], f"ended: {error}")
            elif error is not None:
                self.write(LEVELS["error"], "".join(traceback.format_exception(error)))
            with suppress(OSError):
                self._file.close()

    def write(self, level: int, text: str) -> None:
        """Writes the lines of a text, each with the time, the level and this process's number."""
        if level < self._level:
            return
        problem = None
        with self._lock:
            try:
                if self._file is None:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = self._path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
                    self._put(LEVELS["info"], f"process {os.getpid()} on {socket.gethostname()} begins")
                self._put(level, text)
            except OSError as error:
                self._level, problem = LEVELS["none"], error
        if problem is not None:
            self._display.say(f"warning: {self._path} cannot be written and ends here: {problem.strerror}")

    def _put(self, level: int, text: str) -> None:
        assert self._file is not None
        name = next(name for name in reversed(LEVELS) if LEVELS[name] <= level or name == "debug")
        begin = f"{datetime.now().astimezone().isoformat(timespec='seconds')} {name} {self._index}:"
        lines = text.removeprefix("warning: ").splitlines()
        self._file.write("".join(f"{begin} {line.rstrip()}\n" for line in lines if line.strip()))

    def _warned(self, message: Any, category: Any, filename: str, lineno: int, *rest: Any, **more: Any) -> None:
        self.write(LEVELS["warning"], f"{filename}:{lineno}: {getattr(category, '__name__', category)}: {message}")
        self._hook(message, category, filename, lineno, *rest, **more)


class _Handler(logging.Handler):
    """Hands on what libraries log."""

    def __init__(self, write: Callable[[int, str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # arguments that do not fit
            text = str(record.msg)
        with suppress(UserError):  # the display is broken, as the run's own next word will tell
            self._write(record.levelno, f"{record.name}: {text}")

"""Keeps the runs up to date in the background, as long as somebody looks at the page."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from stellarbyte.errors import UserError
from stellarbyte.places import Place
from stellarbyte.watch.children import Children
from stellarbyte.watch.found import MOST_RUNS, runs_of
from stellarbyte.watch.watched import Watched

_SECONDS_BETWEEN, _SECONDS_BETWEEN_IN_A_BUCKET = 1.0, 10.0
_SECONDS_BETWEEN_SEARCHES = 5.0
# A page asks every two seconds, a hidden one not at all. After this time nothing is read until one asks again.
_SECONDS_UNWATCHED = 15.0


class Watcher:
    """The runs at or below the named paths, in the order in which they were found; a run's number never changes.

    prompts: what the newest checkpoints of each are to continue.
    """

    def __init__(self, paths: Sequence[Place], children: Children, prompts: Sequence[str] = ()) -> None:
        self._paths, self._children, self._prompts = list(paths), children, prompts
        self._runs: dict[int, Watched] = {}
        self._numbers = count()
        self._lock = threading.Lock()
        self._ended, self._asked = threading.Event(), threading.Event()
        self._asked_at = self._searched_at = -1e9
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._local = all(isinstance(path, Path) for path in paths)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._asked.set()

    def runs(self) -> dict[int, Watched]:
        """Number -> run, of the runs so far. Asking keeps them up to date for a while."""
        self._asked_at = time.monotonic()
        self._asked.set()
        with self._lock:
            return dict(self._runs)

    def look(self) -> bool:
        """Searches for runs if it is time to, and reads what is new; whether there is more to read at once."""
        now = time.monotonic()
        if now - self._searched_at >= _SECONDS_BETWEEN_SEARCHES:
            self._searched_at = now
            self._search()
        with self._lock:
            runs = list(self._runs.values())
        return sum(run.refresh() for run in runs) > 0

    def _watch(self) -> None:
        pause = _SECONDS_BETWEEN if self._local else _SECONDS_BETWEEN_IN_A_BUCKET
        self._asked_at = time.monotonic()  # the first look is for whoever comes
        while not self._ended.is_set():
            if time.monotonic() - self._asked_at > _SECONDS_UNWATCHED:
                self._asked.clear()
                self._asked.wait()
                continue
            if not self.look():
                self._ended.wait(pause)

    def _search(self) -> None:
        found: list[Place] = []
        for path in self._paths:
            with suppress(OSError, UserError):  # a network may be away for a while
                found += runs_of(path)
        with self._lock:
            # A folder that waited for a run to begin may have runs below it now.
            kept = {n: run for n, run in self._runs.items() if run.run_dir in found or run.run_dir not in self._paths}
            known = {run.run_dir for run in kept.values()}
            for run_dir in found:
                if run_dir not in known and len(kept) < MOST_RUNS:
                    kept[next(self._numbers)] = Watched(run_dir, self._name(run_dir), self._children, self._prompts)
                    known.add(run_dir)
            self._runs = kept

    def _name(self, run_dir: Place) -> str:
        """The path below the named folder, or the folder's own name."""
        for path in self._paths:
            parts, above = run_dir.parts, path.parts
            if len(parts) > len(above) and parts[: len(above)] == above:
                return "/".join(parts[len(above) :])
        resolved = run_dir.resolve()
        return "/".join(resolved.parts[-2:]) if len(self._paths) > 1 else resolved.name

"""One run that is watched: reads what is new in its folder, and tells it to a page."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from stellarbyte.config.nodes import read_yaml
from stellarbyte.config.plain import plain
from stellarbyte.errors import UserError, shown_path
from stellarbyte.figures import VALIDATION
from stellarbyte.folder_lock import lock_holder
from stellarbyte.places import BucketPath, Place
from stellarbyte.terminal_text import harmless
from stellarbyte.watch.checkpoints import Checkpoints
from stellarbyte.watch.children import Children
from stellarbyte.watch.condition import Condition, condition
from stellarbyte.watch.outlook import outlook, patience
from stellarbyte.watch.samples import Samples
from stellarbyte.watch.series import Series
from stellarbyte.watch.tail import Tail, last_lines

_LOG_BYTES, _LOG_LINES = 256 << 10, 200
# A bucket gets the records at saves and validations alone, however long those are apart.
_PATIENCE_IN_A_BUCKET = 3600.0


class Watched:
    """The run in a folder, which may not be there yet. All methods may be called from any thread.

    name: what the page calls it. prompts: what its newest checkpoints are to continue.
    """

    def __init__(self, run_dir: Place, name: str, children: Children, prompts: Sequence[str] = ()) -> None:
        self.run_dir, self.name = run_dir, harmless(shown_path(name))
        self._lock = threading.Lock()
        self._tail, self._series = Tail(run_dir / "metrics.jsonl"), Series()
        self._checkpoints = Checkpoints(run_dir, children)
        self._samples = Samples(run_dir, prompts, children)
        self._log: list[str] = []
        self._steps: list[int] = []
        self._training: dict[str, Any] = {}
        self._holder: dict[str, Any] | None = None
        self._there = self._finished = False
        self._changed_at = time.time()
        self._problem = ""
        self._config_mark: object = None
        self._log_mark: object = None

    def refresh(self) -> bool:
        """Reads what is new; whether there is more to read at once."""
        more, problem = False, ""
        for read in (self._read_config, self._read_log, self._read_checkpoints, self._read_lock):
            try:
                read()
            except (OSError, UserError) as error:
                problem = problem or _words(error)
        try:
            news = self._tail.read()
        except (OSError, UserError) as error:
            problem = problem or _words(error)
        else:
            with self._lock:
                if news.anew:
                    self._series.begin_anew()
                self._series.add(news.lines)
                if news.lines or news.anew:
                    self._note_change("metrics.jsonl")
            more = news.more
        with self._lock:
            self._problem = problem
            self._there = bool(self._log or self._series.count or self._steps or self._training)
        return more

    def summary(self) -> dict[str, Any]:
        """What the page shows of the run at a glance, ready for JSON."""
        with self._lock:
            series, found = self._series, self._condition()
            ahead = outlook(series, self._max_steps(), self._number("eval_steps"))
            live = found.state in ("running", "stuck")
            best = series.best(f"{VALIDATION}loss")
            return {
                "name": self.name,
                "state": found.state,
                "words": found.words,
                "problem": harmless(self._problem),
                "generation": series.generation,
                "count": series.count,
                "step": series.last,
                "max_steps": self._max_steps(),
                "tokens": series.tokens,
                "loss": series.latest("loss"),
                "validation_loss": series.latest(f"{VALIDATION}loss"),
                "best_validation": None if best is None else {"step": best[0], "loss": best[1]},
                "bits_per_byte": series.latest(f"{VALIDATION}bits_per_byte"),
                "learning_rate": series.latest("learning_rate"),
                "tokens_per_second": ahead.tokens_per_second,
                "seconds_per_step": ahead.seconds_per_step,
                "seconds_left": ahead.seconds_left if live else None,
                "silent_seconds": max(0.0, time.time() - self._changed_at),
                "host_bytes": series.latest("host_bytes"),
                "hbm_bytes": series.latest("hbm_bytes"),
                "hbm_limit_bytes": series.latest("hbm_limit_bytes"),
                "newest_checkpoint": max(self._steps, default=None),
            }

    def details(self) -> dict[str, Any]:
        """Its checkpoints, its samples and the end of its log, ready for JSON. Asking for them begins new samples."""
        self._samples.ask(self.newest_checkpoint())
        with self._lock:
            checkpoints = self._checkpoints.told(self._series)
            return {"checkpoints": checkpoints, "samples": self._samples.told(), "log": self._log[-_LOG_LINES:]}

    def since(self, generation: int, count: int) -> dict[str, Any]:
        """Its figures that a page lacks: see `Series.since`."""
        with self._lock:
            return self._series.since(generation, count)

    def newest_checkpoint(self) -> int | None:
        """The step of its newest checkpoint."""
        with self._lock:
            return max(self._steps, default=None)

    def _condition(self) -> Condition:
        in_bucket = isinstance(self.run_dir, BucketPath)
        return condition(
            there=self._there,
            holder=self._holder,
            log=self._log,
            last_step=self._series.last,
            recorded=self._series.count > 0,
            max_steps=self._max_steps(),
            finished=self._finished,
            silent_seconds=time.time() - self._changed_at,
            patience=_PATIENCE_IN_A_BUCKET if in_bucket else patience(self._series),
        )

    def _max_steps(self) -> int | None:
        return self._number("max_steps")

    def _number(self, name: str) -> int | None:
        value = self._training.get(name)
        return value if type(value) is int and value > 0 else None

    def _read_config(self) -> None:
        path = self.run_dir / "config.yaml"
        try:
            status = path.stat()
        except FileNotFoundError:
            return
        mark = (status.st_size, status.st_mtime_ns, status.st_ino)
        if mark == self._config_mark:
            return
        self._config_mark = mark
        found = plain(read_yaml(path))
        training = found.get("training") if isinstance(found, dict) else None
        with self._lock:
            self._training = training if isinstance(training, dict) else {}

    def _read_log(self) -> None:
        try:
            status = (self.run_dir / "log.txt").stat()
            mark = (status.st_size, status.st_mtime_ns, status.st_ino)
        except FileNotFoundError:
            mark = None
        if mark == self._log_mark:
            return
        self._log_mark = mark
        lines = [harmless(line) for line in last_lines(self.run_dir / "log.txt", _LOG_BYTES)]
        with self._lock:
            if lines != self._log:
                self._log = lines
                self._note_change("log.txt")

    def _read_checkpoints(self) -> None:
        steps = self._checkpoints.read()
        with self._lock:
            self._steps = steps

    def _read_lock(self) -> None:
        holder, finished = lock_holder(self.run_dir), (self.run_dir / "summary.json").is_file()
        with self._lock:
            self._holder, self._finished = holder, finished

    def _note_change(self, name: str) -> None:
        """Notes when a file was written; what a bucket has is as new as it is here."""
        changed = time.time()
        path = self.run_dir / name
        if isinstance(path, Path):
            with suppress(OSError):
                changed = path.stat().st_mtime
        first = self._there
        self._changed_at = max(self._changed_at, changed) if first else changed


def _words(error: OSError | UserError) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{error.filename or 'a file of the run'} cannot be read: {error.strerror}"

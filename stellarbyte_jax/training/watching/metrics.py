"""Records a run's figures: one line a step in RUN/metrics.jsonl, and a progress display on the terminal."""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import jax
import numpy as np

from stellarbyte.chips import GIB
from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.figures import VALIDATION, in_words, perplexity
from stellarbyte.host_memory import resident_bytes
from stellarbyte.metrics_file import TokensSeen, drop_records_after
from stellarbyte.validation_table import line_words, table_rows
from stellarbyte_jax.training.failures import Failures
from stellarbyte_jax.training.watching.compile_watch import Compilation
from stellarbyte_jax.training.watching.step_clock import StepClock
from stellarbyte_jax.training.watching.trackers.trackers import Trackers
from stellarbyte_jax.training.watching.utilization import Utilization

# If stdout is not a terminal, lines come often enough to show that the run lives, and seldom enough for a log file.
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_FRAMES = 0.1


class MetricsLog:
    """Records and shows what the training loop reports.

    Steps count from 1: step n is the n-th update. `first_step` updates were done before; records of later steps, which
    an interrupted run has left, are dropped, so that the file holds each step once. Only process 0 writes and shows.

    A value that the device is still computing is fetched one step late, so the device never waits for the log. `clock`
    tells what the run's time went into. The names of all figures are those of stellarbyte/figures.py.

    `trackers` get the records as well. `utilization` is that of a step of the present size, and `last_epoch` how many
    epochs are done at the last step.

    If metrics.jsonl or stdout cannot be written any more, `failures` notes it, because a run is saved before it ends.
    Only entering and leaving the log raise it.

    Raises:
        UserError: metrics.jsonl or stdout cannot be written.
    """

    def __init__(
        self,
        run_dir: str | Path,
        first_step: int,
        max_steps: int,
        utilization: Utilization | None = None,
        display: Display | None = None,
        failures: Failures | None = None,
        trackers: Trackers | None = None,
    ) -> None:
        self.clock = StepClock()
        self.first_step = first_step
        self._tokens_seen = TokensSeen()
        self._path = Path(run_dir) / "metrics.jsonl"
        self._max_steps = max_steps
        self.utilization = utilization
        self.last_epoch: float | None = None
        self._step = first_step
        self._writes = jax.process_index() == 0
        self._file: IO[str] | None = None
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._compilations: dict[str, float | str] = {}
        self._shown: dict[str, Any] = {}
        self._validations: dict[int, Mapping[str, Any]] = {}
        self._bits_per_byte: float | None = None
        self._shown_at = -math.inf
        self._printed_step = first_step
        self._display = display or Display(quiet=not self._writes)
        self._failures = failures or Failures()
        self._trackers = trackers if self._writes else None

    def __enter__(self) -> Self:
        if self._writes:
            with _blaming(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                drop_records_after(self._path, self._step, self._note)
                self._file = self._path.open("a", encoding="utf-8", buffering=1)
        if self._trackers is not None:
            self._trackers.open()
        self._display.__enter__()
        self._display.begin(self._step, self._max_steps)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        before = self._failures.first
        try:
            if kind is None:  # after an error of the device, fetching from it might hang or raise again
                self._flush()
                self._show()
            if self._trackers is not None:
                self._trackers.close()
                self._say_warnings(self._trackers)
        finally:
            self._display.__exit__(kind, error, traceback)
            self._close()
        if kind is None and before is None and self._failures.first is not None:
            raise self._failures.first

    def train(self, step: int, values: Mapping[str, Any]) -> None:
        """Records an update's values, numbers or jax arrays: loss, accuracy, grad_norm, learning_rate, tokens, ….

        The record also gets `perplexity`, from `loss`; `tokens_seen`; `tokens_per_second` and the parts of the step's
        time, from the clock; memory; the figures of Utilization; and those of the compilations since the step before.
        """
        if self._compilations:  # the time of the step before would contain them
            self.clock.leave_out()
        values = {**values, **self._taken_compilations()}
        arrays = (value for value in values.values() if isinstance(value, jax.Array))
        if all(array.is_ready() for array in arrays):  # type: ignore[attr-defined]
            self._pending.append((step, values))
            self._flush()
        else:
            self._flush()
            self._pending.append((step, values))

    def validation(self, step: int, values: Mapping[str, Any]) -> None:
        """Records and shows values over the validation split, under names with `validation_` before them."""
        self.clock.leave_out()  # if this is not in `paused`, the time of the step before would contain the validation
        self._flush()
        seconds = {} if self.clock.paused_for is None else {"seconds": self.clock.paused_for}
        numbers = _numbers({**values, **seconds, **self._taken_compilations()})
        numbers = {VALIDATION + name: number for name, number in numbers.items()}
        self._bits_per_byte = numbers.get("validation_bits_per_byte", self._bits_per_byte)
        earlier = {before: each for before, each in self._validations.items() if before < step}
        if step not in self._validations:
            self._write({"step": step, **numbers})
            self._validations[step] = numbers
        at = f"step {step}/{self._max_steps}"
        line = "  ".join((f"{at}  validation", *line_words(step, numbers, earlier)))
        with self._failures.noted():
            self._display.report(line, f"validation at {at}", table_rows(step, numbers, earlier))
        self.clock.restart()

    def compiled(self, compilation: Compilation) -> None:
        """Prints how long a step took to compile; the figures go into the next record."""
        self._compilations |= compilation.figures()
        self.clock.compiled(compilation.seconds)
        self.say(str(compilation))

    def say(self, text: str) -> None:
        """Prints a line above the progress display."""
        with self._failures.noted():
            self._display.say(text)

    def doing(self, what: str) -> AbstractContextManager[Callable[[int, int | None], None]]:
        """Shows what is going on beside training, such as "validating": see Display."""
        return self._display.doing(what)

    def lacks_validation(self, step: int) -> bool:
        """Whether metrics.jsonl has no validation of this step, as far as this process has read and written it."""
        return step not in self._validations

    @property
    def validations(self) -> Mapping[int, Mapping[str, Any]]:
        """The records of all validations so far, by step: those that this process has read or written."""
        return self._validations

    @property
    def tokens_seen(self) -> int | None:
        """Tokens of all steps that are recorded; None if the records of some are missing."""
        return self._tokens_seen.total

    @contextmanager
    def paused(self, part: str = "other") -> Iterator[None]:
        """A context for `validation`, `checkpoint` and the like. It records the last step first; see StepClock."""
        self._flush()
        with self.clock.paused(part):
            yield

    def conclude(self, text: str) -> None:
        """Records and shows the last step, and prints the run's last words."""
        self._flush()
        self._show()
        with self._failures.noted():
            self._display.end(text)

    def _taken_compilations(self) -> dict[str, float | str]:
        taken, self._compilations = self._compilations, {}
        return taken

    def _flush(self) -> None:
        if not self._pending:
            return
        fetched = [(step, _numbers(values)) for step, values in self._pending]
        self._pending = []
        seconds, parts = self.clock.steps_done([numbers.get("tokens") or 0 for _, numbers in fetched])
        memory = {} if self.utilization is None else self.utilization.memory()
        for step, numbers in fetched:
            self._tokens_seen.add({"step": step, **numbers})
            numbers["tokens_seen"] = self._tokens_seen.total
            numbers["tokens_per_second"] = None if seconds is None else (numbers.get("tokens") or 0) / seconds
            numbers |= {"step_seconds": seconds, **parts}
            parts.pop("checkpoint_seconds", None)  # it was before the first of them
            if seconds is not None:
                numbers |= self._speed(seconds)
            numbers |= memory | ({} if (resident := resident_bytes()) is None else {"host_bytes": resident})
            self._write({"step": step, **numbers})
            self._step, self._shown = step, numbers | self._recent_speed()
        interval = _SECONDS_BETWEEN_FRAMES if self._display.live else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self._shown_at >= interval:
            self._show()

    def _speed(self, seconds: float) -> dict[str, float]:
        return {} if self.utilization is None else self.utilization.speed(seconds)

    def _recent_speed(self) -> dict[str, float]:
        """Tokens per second, and the figures of Utilization, over the last steps that had a rate."""
        rate = self.clock.recent_rate()
        return {} if rate is None else {"tokens_per_second": rate[0], **self._speed(rate[1])}

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        with self._failures.noted(), _blaming(self._path):
            try:
                self._file.write(json.dumps(record) + "\n")
            except OSError:
                file, self._file = self._file, None  # the file may end in half a line, so nothing may follow it
                with suppress(OSError):
                    file.close()
                raise
        if self._trackers is not None:
            self._trackers.record(record)
            self._say_warnings(self._trackers)

    def _say_warnings(self, trackers: Trackers) -> None:
        for warning in trackers.warnings():
            self.say(warning)

    def _close(self) -> None:
        if self._file is not None:
            with self._failures.noted(), _blaming(self._path):
                self._file.close()

    def _note(self, record: Mapping[str, Any]) -> None:
        if "loss" in record:
            self._tokens_seen.add(record)
        if "validation_loss" in record:
            self._validations[record["step"]] = record

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if self._display.live or self._printed_step != self._step:
            self._printed_step = self._step
            left = self.clock.seconds_left(self._max_steps - self._step)
            epoch = self._shown.get("epoch")
            epochs = None if epoch is None or self.last_epoch is None else (epoch, self.last_epoch)
            with self._failures.noted():
                self._display.update(self._step, self._max_steps, self._words(), left, epochs)

    def _words(self) -> list[str]:
        words = in_words(self._shown)
        if "hbm_peak_bytes" in self._shown and "hbm_limit_bytes" in self._shown:
            peak, limit = (self._shown[name] / GIB for name in ("hbm_peak_bytes", "hbm_limit_bytes"))
            words.append(f"HBM {peak:.1f} of {limit:.1f} GiB")
        if self._bits_per_byte is not None:
            words.append(f"validation bits/byte {self._bits_per_byte:.3f}")
        return words


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values, fetched from the device; arrays become lists, and numbers that JSON lacks (NaN) become None."""
    words = {name: value for name, value in values.items() if isinstance(value, str)}
    numbers = {name: value for name, value in values.items() if name not in words}
    fetched = {name: np.asarray(value, np.float64).tolist() for name, value in jax.device_get(numbers).items()}
    if "loss" in fetched and "perplexity" not in fetched:
        fetched["perplexity"] = perplexity(fetched["loss"])
    return jax.tree.map(lambda number: number if math.isfinite(number) else None, fetched) | words


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error

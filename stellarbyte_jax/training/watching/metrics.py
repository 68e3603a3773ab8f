"""Records a run's figures: one line a step in RUN/metrics.jsonl, and a progress display on the terminal."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import jax
import numpy as np

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.metrics_file import drop_records_after
from stellarbyte_jax.machine.chips import GIB
from stellarbyte_jax.training.failures import Failures
from stellarbyte_jax.training.watching.compile_watch import Compilation
from stellarbyte_jax.training.watching.trackers.trackers import Trackers
from stellarbyte_jax.training.watching.utilization import Utilization

# If stdout is not a terminal, lines come often enough to show that the run lives, and seldom enough for a log file.
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_FRAMES = 0.1
# The rate that is shown is the mean over this many steps; the record of a step has the rate of this step alone.
_STEPS_IN_RATE = 10


class MetricsLog:
    """Records and shows what the training loop reports.

    Steps count from 1: step n is the n-th update. `first_step` updates were done before; records of later steps, which
    an interrupted run has left, are dropped, so that the file holds each step once. Only process 0 writes and shows.

    A value that the device is still computing is fetched one step late, so the device never waits for the log. Time
    inside `paused()` is not training time. Steps that compile, such as the first, have no tokens_per_second.

    `trackers` get the records as well.

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
        self._path = Path(run_dir) / "metrics.jsonl"
        self._max_steps = max_steps
        self._utilization = utilization
        self._step = first_step
        self._writes = jax.process_index() == 0
        self._file: IO[str] | None = None
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._compilations: dict[str, float | str] = {}
        self._shown: dict[str, Any] = {}
        self._validations: dict[int, Mapping[str, Any]] = {}
        self._bits_per_byte: float | None = None
        self._compiled = False
        self._clock: float | None = None
        self._step_seconds: float | None = None
        self._shown_at = -math.inf
        self._printed_step = first_step
        self._recent: deque[tuple[float, float]] = deque(maxlen=_STEPS_IN_RATE)
        self._display = display or Display(quiet=not self._writes)
        self._failures = failures or Failures()
        self._trackers = trackers if self._writes else None

    def __enter__(self) -> Self:
        if self._writes:
            with _blaming(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                drop_records_after(self._path, self._step, self._note_validated)
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

        The record also gets `perplexity`, from `loss`; `tokens_per_second`, from `tokens` and the clock; the figures of
        Utilization; and those of the compilations since the step before.
        """
        if self._compilations:  # the time of the step before would contain them
            self._clock = None
        values = {**values, **self._taken_compilations()}
        arrays = (value for value in values.values() if isinstance(value, jax.Array))
        if all(array.is_ready() for array in arrays):  # type: ignore[attr-defined]
            self._pending.append((step, values))
            self._flush()
        else:
            self._flush()
            self._pending.append((step, values))

    def validation(self, step: int, values: Mapping[str, Any]) -> None:
        """Records and prints values over the validation split, under names with `validation_` before them."""
        self._clock = None  # if this is not in `paused()`, the time of the step before would contain the validation
        self._flush()
        numbers = _numbers({**values, **self._taken_compilations()})
        numbers = {f"validation_{name}": number for name, number in numbers.items()}
        self._bits_per_byte = numbers.get("validation_bits_per_byte", self._bits_per_byte)
        if step not in self._validations:
            self._write({"step": step, **numbers})
            self._validations[step] = numbers
        self.say(f"step {step}/{self._max_steps}  validation  {'  '.join(_in_words(numbers, 'validation_'))}")
        self._clock = time.monotonic()

    def compiled(self, compilation: Compilation) -> None:
        """Prints how long a step took to compile; the figures go into the next record."""
        self._compilations |= compilation.figures()
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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context for validating and saving. It records the last step first; its own time is not training time."""
        self._flush()
        try:
            yield
        finally:
            self._clock = time.monotonic()

    def _taken_compilations(self) -> dict[str, float | str]:
        taken, self._compilations = self._compilations, {}
        return taken

    def _flush(self) -> None:
        if not self._pending:
            return
        fetched = [(step, _numbers(values)) for step, values in self._pending]
        self._pending = []
        now = time.monotonic()
        seconds = None
        if self._compiled and self._clock is not None:
            # Steps that are fetched together get equal shares of the time since the last fetch.
            seconds = max(now - self._clock, 1e-9) / len(fetched)
            # Smoothed over about ten steps, for the ETA.
            self._step_seconds = 0.9 * (self._step_seconds or seconds) + 0.1 * seconds
        self._compiled = True
        self._clock = now
        memory = {} if self._utilization is None else self._utilization.memory()
        for step, numbers in fetched:
            numbers["tokens_per_second"] = None if seconds is None else (numbers.get("tokens") or 0) / seconds
            if seconds is not None:
                self._recent.append((numbers.get("tokens") or 0, seconds))
                numbers |= self._speed(seconds)
            numbers |= memory
            self._write({"step": step, **numbers})
            self._step, self._shown = step, numbers | self._recent_speed()
        if now - self._shown_at >= (_SECONDS_BETWEEN_FRAMES if self._display.live else _SECONDS_BETWEEN_LINES):
            self._show()

    def _speed(self, seconds: float) -> dict[str, float]:
        return {} if self._utilization is None else self._utilization.speed(seconds)

    def _recent_speed(self) -> dict[str, float]:
        """Tokens per second, and the figures of Utilization, over the last steps that had a rate."""
        if not self._recent:
            return {}
        tokens, seconds = (sum(values) for values in zip(*self._recent, strict=True))
        return {"tokens_per_second": tokens / seconds, **self._speed(seconds / len(self._recent))}

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

    def _note_validated(self, record: Mapping[str, Any]) -> None:
        if "validation_loss" in record:
            self._validations[record["step"]] = record

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if self._display.live or self._printed_step != self._step:
            self._printed_step = self._step
            left = None if self._step_seconds is None else self._step_seconds * (self._max_steps - self._step)
            with self._failures.noted():
                self._display.update(self._step, self._max_steps, self._words(), left)

    def _words(self) -> list[str]:
        words = _in_words(self._shown, "")
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
        fetched["perplexity"] = math.exp(fetched["loss"]) if fetched["loss"] < 700 else math.inf
    return jax.tree.map(lambda number: number if math.isfinite(number) else None, fetched) | words


def _in_words(numbers: Mapping[str, Any], prefix: str) -> list[str]:
    formats = {
        "loss": "loss {:.4f}",
        "perplexity": "perplexity {:.2f}",
        "accuracy": "accuracy {:.3f}",
        "bits_per_byte": "bits/byte {:.4f}",
        "balance_loss": "balance {:.3f}",
        "dropped_share": "dropped {:.3f}",
        "grad_norm": "gradient {:.2f}",
        "learning_rate": "rate {:.2e}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "mfu": "MFU {:.1%}",
    }
    known = ((text, numbers.get(prefix + name)) for name, text in formats.items() if prefix + name in numbers)
    # A first step has no rate; any other number that is missing is not finite, and should be seen.
    return [
        text.format(number) if number is not None else text.split(" ")[0] + " not finite"
        for text, number in known
        if number is not None or not text.endswith("tokens/s")
    ]


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error

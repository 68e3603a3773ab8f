"""Records and shows a fine-tuning run's figures as it goes: a line a step in metrics.jsonl, and the display."""

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.figures import in_words, value_of
from stellarbyte.host_memory import resident_bytes
from stellarbyte.metrics_file import TokensSeen, drop_records_after
from stellarbyte.validation_table import line_words, table_rows
from stellarbyte_torch.finetune.interrupt import Interrupt

# If the output is not a terminal: often enough to show that the run is alive, rarely enough for a log file.
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_FRAMES = 0.1
# The weight of one step in the displayed rates, which so are averages over about the last ten steps.
_SHARE_OF_A_STEP = 0.1
# exp of a larger one is beyond all numbers.
_LARGEST_LOSS = 700.0


class NotFiniteError(UserError):
    """A loss or a gradient is NaN or infinite, so weights updated by it must not be saved."""


class FinetuneProgress(TrainerCallback):
    """Records and shows what the Trainer logs; only the first process writes and shows.

    When a run is resumed, the records after its checkpoint are dropped, so that the file holds each step once.
    `seconds` and `tokens` count training alone, without evaluations, saving, and the first step, which compiles.

    Args:
        interrupt: asks the run to save and stop if a figure cannot be written or shown, so that no step is lost.
        lacks_validation: the validation at the checkpoint's own step was cut short; its record is dropped as well.

    Raises:
        UserError: metrics.jsonl cannot be written, or the loss is no longer finite.
    """

    def __init__(
        self, path: Path, display: Display, interrupt: Interrupt, *, is_main: bool, lacks_validation: bool = False
    ) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._lacks_validation, self._interrupt = lacks_validation, interrupt
        self._path, self._is_main, self._display = path, is_main, display
        self._file: IO[str] | None = None
        self._step = self._max_steps = self._first_step = self._logged_step = 0
        self._shown: dict[str, Any] = {}
        self._eval_loss: float | None = None
        self._validations: dict[int, Mapping[str, Any]] = {}
        self._tokens_seen = TokensSeen()
        self._epoch: tuple[float, float] | None = None
        self._clock: float | None = None
        self._step_seconds: float | None = None
        self._speed: float | None = None
        self._since_log = 0.0
        self._shown_at = -math.inf
        self._validating = ExitStack()
        self._validated: Any = None
        self._batches = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._validating.close()
        if self._file is not None:
            with suppress(OSError):  # _write has already reported the failure
                self._file.close()

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the signatures of callbacks
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Opens the file and the display."""
        self._step = self._first_step = self._logged_step = state.global_step
        self._max_steps = state.max_steps
        if self._is_main:
            self._open(state.global_step)
        self._display.begin(state.global_step, state.max_steps)
        self._clock = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Adds up the time of a step."""
        self._step = state.global_step
        self._tick()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **event: Any,
    ) -> None:
        """Records and shows what the Trainer logs about training."""
        logs: dict[str, Any] = event["logs"]
        if "loss" not in logs:
            return
        self._tick()  # fetching the loss has waited for the device
        # The gradient is checked too: the loss may still be finite although this gradient has already spoilt the
        # weights that would be saved. In float16 it is not checked: the loss scaler overflows some by design.
        for name, value in (("loss", logs["loss"]), ("gradient", 0.0 if args.fp16 else logs.get("grad_norm", 0.0))):
            if not math.isfinite(value):
                raise NotFiniteError(
                    f"the {name} of step {state.global_step} is {value}: lower training.learning_rate or raise "
                    "training.warmup_steps; the checkpoints before it are intact"
                )
        record: dict[str, Any] = {
            name: logs[name] for name in ("loss", "grad_norm", "learning_rate", "tokens") if name in logs
        }
        if state.epoch is not None:
            record["epoch"] = state.epoch
            self._epoch = (state.epoch, state.epoch * state.max_steps / state.global_step)
        steps = max(state.global_step - self._logged_step, 1)
        record |= {"tokens_per_second": None, "step_seconds": None}
        if state.global_step > self._first_step + 1:
            record["tokens_per_second"] = logs["tokens"] / max(self._since_log, 1e-9)
            self.seconds += self._since_log
            self.tokens += logs["tokens"]
            self._smooth(self._since_log, logs["tokens"], steps)
            record["step_seconds"] = self._since_log / steps
        self._tokens_seen.add({"step": state.global_step, "tokens": logs["tokens"]}, steps)
        record["tokens_seen"] = self._tokens_seen.total
        if (resident := resident_bytes()) is not None:
            record["host_bytes"] = resident
        self._since_log, self._logged_step = 0.0, state.global_step
        self._shown = record
        interval = _SECONDS_BETWEEN_FRAMES if self._display.live else _SECONDS_BETWEEN_LINES
        with self._failures():
            self._write({"step": state.global_step, **record})
            if time.monotonic() - self._shown_at >= interval or state.global_step == self._max_steps:
                self._show()

    def on_prediction_step(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **event: Any,
    ) -> None:
        """Shows how far a validation is."""
        if self._batches == 0:
            self._validated = self._validating.enter_context(self._display.doing("validating"))
        self._batches += 1
        self._validated(self._batches, len(event["eval_dataloader"]))

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **event: Any,
    ) -> None:
        """Records and prints a validation loss."""
        self._validating.close()
        self._batches = 0
        metrics: dict[str, float] = event["metrics"]
        self._eval_loss = loss = metrics["eval_loss"]
        perplexity = math.exp(loss) if loss < _LARGEST_LOSS else math.inf
        figures = {"validation_loss": loss, "validation_perplexity": perplexity}
        record = {name: number if math.isfinite(number) else None for name, number in figures.items()}
        earlier = {step: each for step, each in self._validations.items() if step < state.global_step}
        self._validations[state.global_step] = record
        at = f"step {state.global_step}/{self._max_steps}"
        line = "  ".join((f"{at}  validation", *line_words(state.global_step, record, earlier)))
        with self._failures():
            self._write({"step": state.global_step, **record})
            if self._is_main:
                self._display.report(line, f"validation at {at}", table_rows(state.global_step, record, earlier))
        self._clock = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Leaves the time of saving out of the training time."""
        self._clock = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line above the progress display."""
        if self._is_main:
            self._display.say(text)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            self._interrupt.fail(error)

    def _tick(self) -> None:
        now = time.monotonic()
        assert self._clock is not None
        self._since_log += now - self._clock
        self._clock = now

    def _smooth(self, seconds: float, tokens: int, steps: int) -> None:
        share = 1 - (1 - _SHARE_OF_A_STEP) ** steps
        per_step = self._step_seconds or seconds / steps
        speed = self._speed or tokens / max(seconds, 1e-9)
        self._step_seconds = per_step + share * (seconds / steps - per_step)
        self._speed = speed + share * (tokens / max(seconds, 1e-9) - speed)

    def _open(self, step: int) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_records_after(self._path, step, self._note, lacks_validation=self._lacks_validation)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from error

    def _note(self, record: dict[str, Any]) -> None:
        if "loss" in record:
            self._tokens_seen.add(record)
        elif (loss := value_of(record, "validation_loss")) is not None:
            self._validations[record["step"]] = record | {"validation_loss": loss}

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if self._is_main:
            left = None if self._step_seconds is None else self._step_seconds * (self._max_steps - self._step)
            self._display.update(self._step, self._max_steps, self._words(), left, self._epoch)

    def _words(self) -> list[str]:
        words = in_words(self._shown | {"tokens_per_second": self._speed}) if self._shown else []
        if self._eval_loss is not None:
            words.append(f"validation loss {self._eval_loss:.4f}")
        return words

"""The figures of a fine-tuning run as it goes: one line a step in metrics.jsonl, and a progress display."""

import json
import math
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stellarbyte.errors import UserError

# Where the output is no terminal: often enough to see that it lives, seldom enough for a log file.
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_FRAMES = 0.1


class FinetuneProgress(TrainerCallback):
    """Records and shows what the Trainer logs; only the first process writes and shows.

    Of a run that goes on, what was recorded after its checkpoint is dropped, so that the file holds each step once.
    `seconds` and `tokens` are those of training alone, without evaluations, saving and the first step, which compiles.

    Raises:
        UserError: metrics.jsonl cannot be written, or the loss is no longer finite.
    """

    def __init__(self, path: Path, console: Console, *, is_main: bool) -> None:
        self.seconds, self.tokens = 0.0, 0
        self._path, self._is_main, self._console = path, is_main, console
        self._file: IO[str] | None = None
        self._step = self._max_steps = self._first_step = self._logged_step = 0
        self._shown: dict[str, Any] = {}
        self._eval_loss: float | None = None
        self._clock: float | None = None
        self._step_seconds: float | None = None
        self._since_log = 0.0
        self._shown_at = -math.inf
        self._printed_step = -1
        self._live = Live(get_renderable=self._render, console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()
        if self._file is not None:
            with suppress(OSError):  # it has been told where it was written
                self._file.close()

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the signatures of callbacks
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Open the file and the display."""
        self._step = self._first_step = state.global_step
        self._max_steps = state.max_steps
        if self._is_main:
            self._open(state.global_step)
            if self._console.is_terminal:
                self._live.start()
        self._clock = time.monotonic()

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        """Count the time of a step."""
        self._step = state.global_step
        self._tick()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **event: Any,
    ) -> None:
        """Record and show a line of the Trainer's about training."""
        logs: dict[str, Any] = event["logs"]
        if "loss" not in logs:
            return
        self._tick()  # fetching the loss has waited for the device
        # The gradient too: a loss may be the last finite one, and what is saved is what this gradient made of it. In
        # float16, though, its scale is found by trying.
        for name, value in (("loss", logs["loss"]), ("gradient", 0.0 if args.fp16 else logs.get("grad_norm", 0.0))):
            if not math.isfinite(value):
                raise UserError(
                    f"the {name} of step {state.global_step} is {value}: lower training.learning_rate or raise "
                    "training.warmup_steps; the checkpoints before it are intact"
                )
        record: dict[str, Any] = {
            name: logs[name] for name in ("loss", "grad_norm", "learning_rate", "tokens") if name in logs
        }
        record["tokens_per_second"] = None
        if state.global_step > self._first_step + 1:
            record["tokens_per_second"] = logs["tokens"] / max(self._since_log, 1e-9)
            self.seconds += self._since_log
            self.tokens += logs["tokens"]
            step_seconds = self._since_log / max(state.global_step - self._logged_step, 1)
            # Smoothed over about ten steps, for the ETA.
            self._step_seconds = 0.9 * (self._step_seconds or step_seconds) + 0.1 * step_seconds
        self._since_log, self._logged_step = 0.0, state.global_step
        self._write({"step": state.global_step, **record})
        self._shown = record
        interval = _SECONDS_BETWEEN_FRAMES if self._console.is_terminal else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self._shown_at >= interval or state.global_step == self._max_steps:
            self._show()

    def on_evaluate(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **event: Any,
    ) -> None:
        """Record and print a validation loss."""
        metrics: dict[str, float] = event["metrics"]
        self._eval_loss = metrics["eval_loss"]
        self._write({"step": state.global_step, "eval_loss": self._eval_loss})
        self.say(f"step {state.global_step}/{self._max_steps}  validation loss {self._eval_loss:.4f}")
        self._clock = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:  # noqa: ARG002
        """Saving is no training time."""
        self._clock = time.monotonic()

    def say(self, text: str) -> None:
        """Prints a line above the progress display."""
        if self._is_main:
            self._console.print(text, soft_wrap=True)

    def _tick(self) -> None:
        now = time.monotonic()
        assert self._clock is not None
        self._since_log += now - self._clock
        self._clock = now

    def _open(self, step: int) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            records = []
            # From step 0 on everything is done again, the validation before training too.
            if step > 0 and self._path.exists():
                for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                    try:
                        if json.loads(line)["step"] <= step:
                            records.append(line + "\n")
                    except (ValueError, KeyError, TypeError):
                        continue  # a line that a crash cut short
            self._path.write_text("".join(records), encoding="utf-8")
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror}") from error

    def _write(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise UserError(f"{self._path} cannot be written: {error.strerror or error}") from error

    def _show(self) -> None:
        self._shown_at = time.monotonic()
        if not self._is_main:
            return
        if self._console.is_terminal:
            self._live.refresh()
        elif self._printed_step != self._step:
            self._printed_step = self._step
            self.say(f"step {self._step}/{self._max_steps}  {self._words()}  ETA {self._eta()}")

    def _render(self) -> RenderableType:
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        bar = ProgressBar(total=self._max_steps, completed=self._step)
        head.add_row(f"step {self._step}/{self._max_steps}", bar, f"ETA {self._eta()}")
        return Group(head, Text(self._words()))

    def _words(self) -> str:
        words = [f"loss {self._shown['loss']:.4f}"] if self._shown else []
        if self._shown.get("tokens_per_second") is not None:
            words.append(f"{self._shown['tokens_per_second']:,.0f} tokens/s")
        if self._eval_loss is not None:
            words.append(f"validation loss {self._eval_loss:.4f}")
        return "  ".join(words)

    def _eta(self) -> str:
        if self._step_seconds is None:
            return "-:--:--"
        return str(timedelta(seconds=round(self._step_seconds * (self._max_steps - self._step))))

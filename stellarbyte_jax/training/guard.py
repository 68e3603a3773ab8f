"""Looks at each step's figures, and decides how a run goes on after a step that was not applied."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.checkpoint import GuardState, checkpoint_steps
from stellarbyte_jax.checkpoints.needed import needed_by
from stellarbyte_jax.config import CheckpointConfig, RunConfig
from stellarbyte_jax.training.divergence_log import DivergenceLog
from stellarbyte_jax.training.failures import Failures
from stellarbyte_jax.training.finite import ADVICE
from stellarbyte_jax.training.state import TrainState

Figures = Mapping[str, Any]

# The figures by which a step is judged. The gradient is one of them: a finite loss can have a gradient that is not,
# which would spoil the parameters.
_WATCHED = ("loss", "grad_norm", "is_spike")
_WORDS = {"loss": "loss", "grad_norm": "gradient", "is_spike": "loss"}


class BadStep(Exception):
    """A step that was not applied, nor those after it: its loss or gradient is not finite, or its loss is a spike.

    what: "loss", "grad_norm" or "is_spike". figures: the loss and the norm of the gradient.
    """

    def __init__(self, step: int, what: str, figures: Mapping[str, float]) -> None:
        self.step, self.what, self.figures = step, what, figures
        self.is_spike = what == "is_spike"
        value = figures["loss" if self.is_spike else what]
        far = ", far above those of the steps before" if self.is_spike else ""
        super().__init__(f"the {_WORDS[what]} of step {step} is {value:.5g}{far}")


@dataclass(eq=False)
class BeginAgain(Exception):
    """The run is to begin again from its newest checkpoint, as it does with another model.

    rounds: see Guard.next_round. reached: the last step that was begun. stopping: whether the run is to stop at once.
    """

    rounds: int
    reached: int
    stopping: bool


@dataclass(eq=False)
class RollBack(BeginAgain):
    """The run is to begin again from an older checkpoint, with other batches.

    target: that checkpoint's step; checkpoints of later steps lead to the bad one. rows: the number of rows that the
    run has passed over by then, with those of its steps. rollbacks: how many there have been in a row.
    """

    target: int
    rows: int
    rollbacks: int


class Guard:
    """Checks each step's figures while the next step runs, and so after the same step in all processes.

    Under a policy that goes on after a bad step, a step is recorded once it is known to be applied, which is one step
    later. What becomes of a bad step follows from its figures and from `state`, so all processes decide alike, and an
    interrupted run decides as one that was never interrupted.

    A skipped batch takes no step: the step is done with the next batch. So a run has `max_steps` updates in any case.

    Args:
        config: the run's.
        step: the number of steps that are done.
        state: what the run remembers, from its checkpoint.
        rows_of: a function from a number of steps to the number of rows that so many steps take, as Feed.rows.
        record: called with the number and the figures of each applied step, as MetricsLog.train.
        back: why the run begins again, if it does.
    """

    def __init__(
        self,
        config: RunConfig,
        step: int,
        state: GuardState,
        rows_of: Callable[[int], int],
        record: Callable[[int, Figures], None],
        back: BeginAgain | None = None,
    ) -> None:
        training = config.training
        self._policy, self._limit = training.on_not_finite, training.max_skipped_in_a_row
        self._rows_of, self._save_steps = rows_of, config.checkpoint.save_steps
        self._waits = self._policy != "stop" or training.loss_spike_zscore is not None
        self._record = record
        self._latest: tuple[int, Figures, Figures] | None = None
        self._state = state
        self._rounds = step if back is None else back.rounds
        if isinstance(back, RollBack):
            left_out = back.rows - self._rows_of(step)
            self._state = replace(state, rows_left_out=left_out, skipped_in_a_row=0, rollbacks_in_a_row=back.rollbacks)

    @property
    def rows_left_out(self) -> int:
        """The number of rows that the run has left out so far."""
        return self._state.rows_left_out

    def rows_before(self, step: int) -> int:
        """The number of rows that the run has passed over when `step` steps are done."""
        return self._rows_of(step) + self._state.rows_left_out

    def batch_of(self, step: int) -> tuple[int, int]:
        """(first row, number of rows) of the batch of a step."""
        return self.rows_before(step - 1), self._rows_of(step) - self._rows_of(step - 1)

    def next_round(self) -> int:
        """A number for Processes.stop_after: that of the step, but one more each time even if steps are done again."""
        self._rounds += 1
        return self._rounds

    def after(self, step: int, metrics: Mapping[str, jax.Array], figures: Figures) -> None:
        """Checks the step before this one; call it after each step. `figures` are to be recorded for this one.

        Raises:
            BadStep: the step before was not applied.
        """
        before = self._latest
        watched = {name: metrics[name] for name in _WATCHED if name in metrics}
        figures = {name: value for name, value in figures.items() if name != "is_spike"}
        self._latest = step, watched, figures
        self._check(before)
        if not self._waits:
            self._record(step, figures)

    def catch_up(self) -> None:
        """Checks the latest step too; call it before that step is saved or validated. Raises as `after` does."""
        latest, self._latest = self._latest, None
        self._check(latest)

    def _check(self, latest: tuple[int, Figures, Figures] | None) -> None:
        if latest is None:
            return
        step, watched, figures = latest
        values = {name: float(value) for name, value in jax.device_get(dict(watched)).items()}
        is_spike = values.pop("is_spike", 0.0)
        what = next(
            (name for name, value in values.items() if not np.isfinite(value)), "is_spike" if is_spike else None
        )
        if what is not None:
            self._latest = None  # the step after it was not applied either
            raise BadStep(step, what, values)
        if self._state.skipped_in_a_row:
            self._state = replace(self._state, skipped_in_a_row=0)
        if self._waits:
            self._record(step, figures)

    def answer(self, bad: BadStep) -> str:
        """What is to be done about a bad step: it is "stopped", "skipped" or "rolled back"."""
        state = self._state
        if (bad.is_spike or self._policy == "skip") and state.skipped_in_a_row < self._limit:
            return "skipped"
        if not bad.is_spike and self._policy == "rollback" and state.rollbacks_in_a_row < self._limit:
            return "rolled back"
        return "stopped"

    def skip(self, bad: BadStep) -> None:
        """Leaves the batch of a bad step out."""
        self._state = replace(
            self._state,
            rows_left_out=self._state.rows_left_out + self.batch_of(bad.step)[1],
            skipped_in_a_row=self._state.skipped_in_a_row + 1,
        )

    def rollback(self, bad: BadStep, target: int, stopping: bool) -> RollBack:
        """How the run begins again from the checkpoint of step `target`, with the batches after the bad one."""
        rows, in_a_row = self.rows_before(bad.step), self._state.rollbacks_in_a_row + 1
        return RollBack(self._rounds, bad.step + 1, stopping, target, rows, in_a_row)

    def begin_again(self, step: int, stopping: bool) -> BeginAgain:
        """How the run begins again from its checkpoint of the step that is done."""
        return BeginAgain(self._rounds, step, stopping)

    def why_stopped(self, bad: BadStep) -> str:
        """What a run that stops has to say about it, in a sentence without its end."""
        state, most = self._state, "the most that training.max_skipped_in_a_row allows"
        if state.skipped_in_a_row >= self._limit:
            return f"{bad}, and {state.skipped_in_a_row} batches before it were left out, {most}: {ADVICE}"
        if state.rollbacks_in_a_row >= self._limit:
            return f"{bad}, and the run went back {state.rollbacks_in_a_row} times, {most}: {ADVICE}"
        return f"{bad}: {ADVICE}, or leave such batches out with training.on_not_finite skip"

    def for_checkpoint(self, step: int, train_state: TrainState) -> GuardState:
        """What a checkpoint of this step has to remember. A rollback may go back to it if it is a regular one."""
        if is_regular(step, self._save_steps):
            self._state = replace(self._state, rollbacks_in_a_row=0)
        recent = train_state.recent_losses
        losses = () if recent is None else tuple(x for x in jax.device_get(recent).tolist() if np.isfinite(x))
        return replace(self._state, recent_losses=losses)


def is_regular(step: int, save_steps: int | None) -> bool:
    """Whether a run saves this step even if nothing interrupts it and whatever the clock says."""
    return save_steps is not None and step % save_steps == 0


def regular_target(run_dir: str | Place, config: CheckpointConfig) -> int | None:
    """The step of the checkpoint to which a rollback goes; None if the run has none.

    It is the newest regular one, so that interruptions, which save others, change nothing. A newer one that adapters
    stand on comes first, because all that come after the target are deleted.
    """
    steps, needed = checkpoint_steps(run_dir), needed_by(run_dir)
    fit = [step for step in steps if is_regular(step, config.save_steps) or step in needed]
    return max(fit or steps, default=None)


class Reports:
    """Tells of bad steps: each in RUN/divergence.jsonl, and on the terminal the first and then ever fewer.

    samples: a function from a first row and a number of rows to the samples that they are, by epoch.
    """

    def __init__(
        self,
        run_dir: Path,
        samples: Callable[[int, int], Mapping[str, Sequence[int]]],
        say: Callable[[str], None],
        failures: Failures,
        *,
        writes: bool,
    ) -> None:
        self._log = DivergenceLog(run_dir)
        self._samples, self._say, self._failures, self._writes = samples, say, failures, writes
        self._told = False

    def of(self, bad: BadStep, batch: tuple[int, int], checkpoint: int | None, done: str) -> str:
        """Records a bad step; returns where its record is, in words.

        batch: its first row, and the number of its rows. checkpoint: the last good one. done: what was done about it.
        """
        where = f"{self._log.path} has its samples"
        if not self._writes:
            return where
        record = {
            "step": bad.step,
            "what": "loss spike" if bad.is_spike else _WORDS[bad.what],
            **{name: value if np.isfinite(value) else str(value) for name, value in bad.figures.items()},
            "samples": {epoch: list(numbers) for epoch, numbers in self._samples(*batch).items()},
            "checkpoint": checkpoint,
            "done": done,
        }
        try:
            count = self._log.add(record)
        except UserError as error:
            if done == "skipped":  # a run is saved before it ends
                self._failures.first = self._failures.first or error
            return str(error)
        is_first, self._told = not self._told, True
        if done == "skipped" and (is_first or count & (count - 1) == 0):  # 1, 2, 4, 8, …
            so_far = "" if count < 2 else f"; {count} such steps so far"
            self._say(f"{bad}, so it is not applied, and its batch is left out: {where}{so_far}")
        if done == "rolled back":
            self._say(
                f"{bad}: going back to the checkpoint of step {checkpoint}; the batches up to the bad one are left "
                f"out: {where}"
            )
        return where

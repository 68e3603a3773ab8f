"""Makes Transformers' Trainer save a checkpoint and stop after a signal, or after a failure between two saves."""

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stellarbyte import interrupt
from stellarbyte.errors import UserError

# Stands for a failure where processes exchange the number of a signal.
_FAILURE = 1000


class AskedToStopError(Exception):
    """The run has been asked to stop in the middle of a validation."""


class Interrupt(interrupt.Interrupt, TrainerCallback):
    """The ground's Interrupt as a Trainer callback: after the current step it saves and stops, and sets `stopped`.

    An error that only concerns the display or the records, such as a closed output, is passed to `fail` and then stops
    the run as a signal does, so that no step is lost; `failure` is the error of this process.

    Raises:
        AskedToStopError: between two batches of a validation, if a stop is asked for.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        super().__init__("stellarbyte" if speaks else None)  # one of several processes speaks
        self.stopped = False
        self.failure: UserError | None = None

    def fail(self, error: UserError) -> None:
        """Asks the run to stop because of `error`."""
        self.failure = self.failure or error

    def _agreed(self, args: TrainingArguments) -> bool:
        """Whether any process is asked to stop, by a failure or by a signal, whose `number` is then set on all of them.

        A collective: every process must call it, because one that trained on alone would wait for the others for ever.
        """
        asked = self.number or (0 if self.failure is None else _FAILURE)
        if args.world_size > 1:
            greatest = torch.tensor(asked, device=args.device)
            dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
            asked = int(greatest.item())
            self.number = asked if 0 < asked < _FAILURE else self.number
        return asked > 0

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> TrainerControl:
        """Saves and stops if a stop is asked for."""
        if self._agreed(args) and state.global_step < state.max_steps:
            self.stopped = True
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(
        self,
        args: TrainingArguments,  # noqa: ARG002 - the signature of callbacks
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> TrainerControl:
        """Keeps Trainer from saving twice: it takes the step at which it stops for the end of an epoch."""
        if self.stopped and state.epoch != int(state.epoch or 0):
            control.should_log = control.should_evaluate = control.should_save = False
        return control

    def on_prediction_step(self, args: TrainingArguments, *_: object, **__: object) -> None:
        """Leaves a validation if a stop is asked for; the resumed run does it again."""
        if self._agreed(args):
            self.stopped = True
            raise AskedToStopError

"""A signal, or a failure between two saves, as a checkpoint and the end of training by Transformers' Trainer."""

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stellarbyte import interrupt
from stellarbyte.errors import UserError

# Among the numbers of signals, that of a failure.
_FAILURE = 1000


class AskedToStopError(Exception):
    """The run has been asked to stop in the middle of a validation."""


class Interrupt(interrupt.Interrupt, TrainerCallback):
    """As the ground's. A callback of the Trainer, it saves and stops after the step; `stopped` tells that it did.

    A failure of what only shows or notes how training goes, such as of an output whose reader has left, asks as a
    signal does, so that no step is lost; `failure` is the one of this process.

    Raises:
        AskedToStopError: from a batch of a validation.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        super().__init__("stellarbyte-torch" if speaks else None)  # of several processes, one does
        self.stopped = False
        self.failure: UserError | None = None

    def fail(self, error: UserError) -> None:
        """Ask to stop because of the error."""
        self.failure = self.failure or error

    def _agreed(self, args: TrainingArguments) -> bool:
        """Whether any process is asked to stop, by a signal whose `number` all of them know then, or by a failure.

        All processes have to ask at the same time: those that went on alone would wait for the others for ever.
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
        """Save and stop, if it is asked for."""
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
        """Trainer takes the step at which it stops for the end of the epoch."""
        if self.stopped and state.epoch != int(state.epoch or 0):
            control.should_log = control.should_evaluate = control.should_save = False
        return control

    def on_prediction_step(self, args: TrainingArguments, *_: object, **__: object) -> None:
        """Leave a validation, if a stop is asked for; the run does it when it goes on."""
        if self._agreed(args):
            self.stopped = True
            raise AskedToStopError

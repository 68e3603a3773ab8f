"""A signal, turned into a checkpoint and the end of training by Transformers' Trainer."""

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stellarbyte import interrupt


class AskedToStopError(Exception):
    """A signal has come in the middle of a validation."""


class Interrupt(interrupt.Interrupt, TrainerCallback):
    """As the ground's. A callback of the Trainer, it saves and stops after the step; `stopped` tells that it did.

    Raises:
        AskedToStopError: from a batch of a validation.
    """

    def __init__(self, *, speaks: bool = True) -> None:
        super().__init__("stellarbyte-torch" if speaks else None)  # of several processes, one does
        self.stopped = False

    def _agreed(self, args: TrainingArguments) -> bool:
        """Whether a signal has come to any process, of which `number` is then one in all of them.

        All processes have to ask at the same time: those that went on alone would wait for the others for ever.
        """
        if args.world_size > 1:
            number = torch.tensor(self.number or 0, device=args.device)
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
            self.number = int(number.item()) or None
        return self.number is not None

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> TrainerControl:
        """Save and stop, if a signal has come."""
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
        """Leave a validation, if a signal has come; the run does it when it goes on."""
        if self._agreed(args):
            self.stopped = True
            raise AskedToStopError

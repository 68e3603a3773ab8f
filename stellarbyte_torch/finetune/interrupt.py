"""A signal, turned into a checkpoint after the step under way and the end of training by Transformers' Trainer."""

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stellarbyte import interrupt


class Interrupt(interrupt.Interrupt, TrainerCallback):
    """As the ground's. A callback of the Trainer, it saves and stops after the step; `stopped` tells that it did."""

    def __init__(self) -> None:
        super().__init__("stellarbyte-torch")
        self.stopped = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> TrainerControl:
        """Save and stop, if a signal has come to any process."""
        if not state.is_world_process_zero:
            self.program = None  # of several processes, one speaks
        requested = self.requested
        if args.world_size > 1:  # the processes must agree, or those that go on would wait for the others for ever
            flag = torch.tensor(int(requested), device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            requested = bool(flag.item())
        if requested and state.global_step < state.max_steps:
            self.stopped = True
            control.should_log = control.should_save = control.should_training_stop = True
        return control

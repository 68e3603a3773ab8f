"""Ctrl-C and SIGTERM, turned into a checkpoint after the step under way and the end of training."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt(TrainerCallback):
    """While entered, the first SIGINT or SIGTERM only sets `requested`; a second one raises KeyboardInterrupt.

    As a callback of the Trainer it saves and stops after the step; `stopped` then tells that it did. Leaving the
    context restores the earlier handlers. In a thread other than the main one, where Python allows no handlers,
    entering changes nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self.stopped = False
        self._speaks = True
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None stands for a handler that was not set from Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Save and stop, if a signal has come to any process."""
        self._speaks = state.is_world_process_zero
        requested = self.requested
        if args.world_size > 1:  # the processes must agree, or those that go on would wait for the others for ever
            flag = torch.tensor(int(requested), device=args.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX)
            requested = bool(flag.item())
        if requested and state.global_step < state.max_steps:
            self.stopped = True
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a handler
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._speaks:
            name = signal.Signals(number).name
            message = f"\nstellarbyte-torch: {name}: finishing this step, then saving; once more to stop at once\n"
            # Past Python's buffers: a handler may run in the middle of somebody's print, whose buffer is then locked.
            os.write(2, message.encode())

"""The lock between forward passes, which share it, and swaps of adapters, which have it alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from stellarbyte.errors import UserError

NO_BACKWARD = -1


class SwapLock:
    """Many forward passes at once, or one swap; a swap waits for running forwards and refuses while a backward runs.

    Forward passes of `model` take part by themselves, through its hooks, but for those inside torch.compile, which
    would be cut in two: around these, use `shared`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._changed = threading.Condition()
        self._depth: dict[int, int] = {}  # of each thread that is inside: forwards nest in generations
        self._alone: int | None = None  # the thread that has it alone
        self._waiting_to_be_alone = 0
        self._backwards: dict[int, threading.Thread] = {}  # autograd's number of a backward pass -> who called it
        self.one_forward_at_a_time = False  # to be set by whoever is alone
        self._in_forward = threading.RLock()
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward, always_call=True)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """No swap happens inside."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Nothing else happens inside. Raises UserError: called from within a forward pass, or during a backward."""
        me = threading.get_ident()
        with self._changed:
            if self._depth.get(me):
                raise UserError(f"cannot {what} inside a forward pass or a generation of this thread: do it afterwards")
            self._refuse_during_backward(what)
            self._waiting_to_be_alone += 1
            try:
                self._changed.wait_for(lambda: not self._depth and self._alone is None)
            finally:
                self._waiting_to_be_alone -= 1
            self._refuse_during_backward(what)  # one may have begun in the meantime
            self._alone = me
        try:
            yield
        finally:
            with self._changed:
                self._alone = None
                self._changed.notify_all()

    def _enter(self) -> None:
        me = threading.get_ident()
        with self._changed:
            # Who is inside already, or alone, may go deeper whoever waits: waiting for itself it would wait for ever.
            if not self._depth.get(me) and self._alone != me:
                self._changed.wait_for(lambda: self._alone is None and not self._waiting_to_be_alone)
            self._depth[me] = self._depth.get(me, 0) + 1

    def _leave(self) -> None:
        me = threading.get_ident()
        with self._changed:
            self._depth[me] -= 1
            if not self._depth[me]:
                del self._depth[me]
            self._changed.notify_all()

    def _before_forward(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        self._enter()
        if self.one_forward_at_a_time:
            self._in_forward.acquire()
        with self._changed:
            self._forget_failed_backwards()

    def _after_forward(self, _model: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if self.one_forward_at_a_time:
            self._in_forward.release()
        self._leave()
        if not torch.is_grad_enabled():
            return
        caller = threading.current_thread()
        for leaf in tree_leaves(dict(output) if isinstance(output, dict) else output):
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                leaf.register_hook(lambda _gradient: self._begin_backward(caller))

    def _begin_backward(self, caller: threading.Thread) -> None:
        """Called by autograd as a gradient reaches the model's output, on whatever thread the engine runs."""
        backward = torch._C._current_graph_task_id()
        with self._changed:
            self._changed.wait_for(lambda: self._alone is None)
            if backward not in self._backwards:
                self._backwards[backward] = caller
                # As DistributedDataParallel learns of a backward's end.
                torch.autograd.Variable._execution_engine.queue_callback(lambda: self._end_backward(backward))

    def _end_backward(self, backward: int) -> None:
        with self._changed:
            self._backwards.pop(backward, None)
            self._changed.notify_all()

    def _refuse_during_backward(self, what: str) -> None:
        self._forget_failed_backwards()
        if self._backwards or torch._C._current_graph_task_id() != NO_BACKWARD:
            raise UserError(
                f"cannot {what} during a backward pass, whose gradients would be wrong: do it after backward()"
            )

    def _forget_failed_backwards(self) -> None:
        """Forgets this thread's backward passes that raised: autograd never calls back for these.

        If this thread is outside any backward pass, its old ones have failed.
        """
        if torch._C._current_graph_task_id() == NO_BACKWARD:
            me = threading.current_thread()
            self._backwards = {
                n: caller for n, caller in self._backwards.items() if caller is not me and caller.is_alive()
            }

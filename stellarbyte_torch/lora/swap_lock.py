"""The lock that forward passes share and that a swap of adapters holds alone."""

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
    """Lets in many forward passes or one swap. A swap waits for running forwards, and is refused while a backward runs.

    Forward passes of `model` take the lock by themselves, through hooks. Those inside torch.compile do not, because the
    hooks would break the graph: use `shared` around them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._changed = threading.Condition()
        self._depth: dict[int, int] = {}  # thread -> how deep it is inside: forwards nest in generations
        self._alone: int | None = None  # the thread that holds the lock alone
        self._waiting_to_be_alone = 0
        self._backwards: dict[int, threading.Thread] = {}  # autograd's number of a backward pass -> who called it
        self.one_forward_at_a_time = False  # to be set by the thread that holds the lock alone
        self._in_forward = threading.RLock()
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward, always_call=True)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keeps swaps out of the block."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Keeps forwards and swaps out of the block. Raises UserError inside a forward pass or during a backward."""
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
            self._refuse_during_backward(what)  # a backward may have begun in the meantime
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
            # A thread that is already inside, or alone, never waits here: it would wait for itself for ever.
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
        """Notes that a backward has begun. Autograd calls this, on any thread, as a gradient reaches the output."""
        backward = torch._C._current_graph_task_id()
        with self._changed:
            self._changed.wait_for(lambda: self._alone is None)
            if backward not in self._backwards:
                self._backwards[backward] = caller
                # DistributedDataParallel learns of the end of a backward in the same way.
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

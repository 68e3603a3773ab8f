"""Trains a pruned model on."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupted, give_back, take_signals
from stellarbyte.pruning.report import Report


@dataclass(frozen=True)
class Recovery:
    """How a pruned model is trained afterwards.

    Attributes:
        config: a config of `stellarbyte pretrain` for a run, or of `finetune` for a folder.
        distill: whether the model before the cut teaches the pruned one.
        talks_on_stderr: whether what the training says goes to stderr, as stdout is for something else.
        tell: called with the reports of what was cut, before the training, which may take long or be interrupted.
    """

    config: Path
    distill: bool = False
    talks_on_stderr: bool = False
    tell: Callable[[list[Report]], None] = lambda _: None

    def train(self, command: str, overrides: Sequence[str], pruned: Path, reports: list[Report]) -> None:
        """Trains `pruned` by `stellarbyte COMMAND CONFIG OVERRIDES`, in a process of its own.

        A signal is passed on, so that the training saves and ends as it does alone.

        Raises:
            UserError: the training fails; the command itself has said why.
            Interrupted: a signal has ended it; the sentence says what goes on with it.
        """
        self.tell(reports)
        words = [command, str(self.config), *overrides]
        came: list[int] = []
        process: subprocess.Popen[bytes] | None = None

        def pass_on(number: int, _: Any) -> None:
            came.append(number)
            if process is not None:
                process.send_signal(number)

        before = take_signals(pass_on)
        try:
            # A process group of its own: a terminal sends Ctrl-C to the whole group, and a second one ends at once.
            out = sys.stderr if self.talks_on_stderr else None
            process = subprocess.Popen([sys.executable, "-m", "stellarbyte", *words], stdout=out, process_group=0)
            for number in came:
                process.send_signal(number)
            code = process.wait()
        finally:
            give_back(before)
        goes_on = f"{pruned} holds the pruned model, and `{shlex.join(['stellarbyte', *words])}` goes on with it"
        if came:
            raise Interrupted(came[0], goes_on)
        if code != 0:
            raise UserError(f"--recover {self.config} did not train the model to the end, as said above; {goes_on}")

"""Tells whether a run is running, stuck, done, stopped or failed, by its lock, its log and its records."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["waiting", "starting", "running", "stuck", "done", "stopped", "failed"]

# A line of log.txt: its time, level and process, and what it says.
_LINE = re.compile(r"(?P<time>\S+) (?P<level>debug|info|warning|error) \d+: (?P<text>.*)")
_BEGINS = re.compile(r"process \d+ on .* begins")
_DONE = re.compile(r"\d+ steps done[;:]")
_STOPPED = re.compile(r"stopped (after step \d+|before the first step)")


@dataclass(frozen=True)
class Condition:
    """A run's state. words: what it says of it in its own words, in English; empty if it says nothing."""

    state: State
    words: str = ""


def condition(
    *,
    there: bool,
    holder: Mapping[str, Any] | None,
    log: Sequence[str],
    last_step: int,
    recorded: bool,
    max_steps: int | None,
    finished: bool,
    silent_seconds: float,
    patience: float,
) -> Condition:
    """The condition of a run.

    Args:
        there: whether its folder holds anything of a run.
        holder: what `lock_holder` says of the process that writes it.
        log: the last lines of its log.
        last_step, recorded: the last step with a record, and whether there is any record.
        max_steps: the steps that it is to do; None if it does not say.
        finished: whether it has left the summary of a fine-tuning run that is done.
        silent_seconds: the time since anything of it has changed.
        patience: how long a run that lives may be silent.
    """
    if holder is not None and not holder.get("gone"):
        if silent_seconds > patience:
            return Condition("stuck")
        return Condition("running" if recorded else "starting")
    if not there:
        return Condition("waiting")
    error, last = _ending(log)
    if error:
        return Condition("failed", error)
    if last:
        return Condition("done") if _DONE.search(last) else Condition("stopped", last)
    if finished or (max_steps is not None and last_step >= max_steps):
        return Condition("done")
    if holder is not None:
        return Condition("failed")
    return Condition("stopped" if recorded else "waiting")


def _ending(log: Sequence[str]) -> tuple[str, str]:
    """(the error, the sentence about its end) since the run has last begun; each empty if there is none."""
    errors: list[str] = []
    last = ""
    for line in log:
        match = _LINE.match(line)
        if match is None:
            continue
        text = match["text"]
        if _BEGINS.fullmatch(text):
            errors, last = [], ""
        elif match["level"] == "error":
            errors.append(text)
        elif _DONE.search(text) or _STOPPED.search(text):
            errors, last = [], text  # what a library has called an error before has not ended the run
    # Of a traceback the last line says what it was.
    plain = [
        text.removeprefix("ended: ")
        for text in errors
        if not text.startswith((" ", "Traceback", "During", "The above"))
    ]
    return (plain or errors or [""])[-1], last

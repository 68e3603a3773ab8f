"""Asks questions in processes of their own, with a time limit: a library that crashes or hangs breaks nothing here."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

# A cold disk may need most of this to import torch.
SECONDS = 90.0


@dataclass(frozen=True)
class Answer:
    """What a child has said. value: its last line, as JSON; None if there is an error. error: one line, or None."""

    value: Any = None
    error: str | None = None


def ask_python(code: str, environment: Mapping[str, str], *words: str, seconds: float = SECONDS) -> Answer:
    """The answer of a Python program, this interpreter's, whose last line of output is JSON."""
    output, error = run([sys.executable, "-c", code, *words], environment, seconds)
    if error is not None:
        return Answer(error=error)
    try:
        return Answer(json.loads(output.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        return Answer(error="it ended without an answer")


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    seconds: float = SECONDS,
    heard: Callable[[str], None] = lambda _: None,
) -> tuple[str, str | None]:
    """(what a command has written to stdout, what went wrong in one line, or None).

    seconds: after so long a silence the command is ended. heard: called with each line of its output as it comes.
    """
    silent = threading.Event()
    with tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            return "", f"{command[0]} cannot be started: {error.strerror}"

        def end() -> None:
            silent.set()
            _kill(child)

        assert child.stdout is not None
        lines: list[str] = []
        timer = _started(seconds, end)
        for line in child.stdout:
            timer.cancel()
            timer = _started(seconds, end)
            lines.append(line)
            heard(line)
        code = child.wait()
        timer.cancel()
        errors.seek(0)
        stderr = errors.read().decode("utf-8", "replace")
    if silent.is_set():
        return "".join(lines), f"it has said nothing for {seconds:g} seconds"
    return "".join(lines), None if code == 0 else _why(code, stderr)


def _started(seconds: float, end: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer


def _kill(child: subprocess.Popen[str]) -> None:
    """Ends a child and what it has started, which would keep its output open."""
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


def _why(code: int, stderr: str) -> str:
    """The line of a traceback that names the error; a signal's name where there is none."""
    if code < 0:
        return f"it was ended by {_name(-code)}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    # The last line that begins at the margin: an error of several lines ends in its details.
    at_margin = [line for line in stderr.splitlines() if line.strip() and not line.startswith((" ", "\t"))]
    errors = [line for line in at_margin if ("Error" in line or "Exception" in line) and not line.startswith("Trace")]
    found = (errors or lines or [f"it ended with code {code}"])[-1]
    return found if len(found) <= 300 else f"{found[:280]}…"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"

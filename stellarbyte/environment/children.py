"""Asks questions in processes of their own, with a time limit: a library that crashes or hangs breaks nothing here."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float = SECONDS) -> tuple[str, str | None]:
    """(what a command has written to stdout, what went wrong in one line, or None)."""
    try:
        done = subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"it has not ended within {seconds:g} seconds"
    except OSError as error:
        return "", f"{command[0]} cannot be started: {error.strerror}"
    if done.returncode == 0:
        return done.stdout, None
    return done.stdout, _why(done.returncode, done.stderr)


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

"""Has the newest checkpoints of a run continue a few prompts, by `stellarbyte generate`, for the page to show."""

import json
import threading
import time
from collections.abc import Sequence
from typing import Any

from stellarbyte.errors import UserError, shown
from stellarbyte.places import Place
from stellarbyte.terminal_text import harmless
from stellarbyte.watch.children import Children

NEW_TOKENS = 64
# A small model takes a few seconds of a core for it, most of them to compile.
_SECONDS_BETWEEN = 60.0
_MOST_STEPS = 20


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises UserError for a prompt that cannot be handed on."""
    for prompt in prompts:
        if not prompt.strip():
            raise UserError(f"--prompt {shown(prompt)} has no text to go on from: give some")
        if prompt.startswith("-"):
            raise UserError(f"--prompt {shown(prompt)} begins with a dash, as options do: begin it with another sign")


class Samples:
    """The texts of a run by the steps of its checkpoints, for these prompts; the likeliest token each time."""

    def __init__(self, run_dir: Place, prompts: Sequence[str], children: Children) -> None:
        self._run_dir, self._prompts, self._children = run_dir, list(prompts), children
        self._lock = threading.Lock()
        self._rows: dict[int, dict[str, Any]] = {}
        self._asked_at, self._asking = -_SECONDS_BETWEEN, False

    def ask(self, step: int | None) -> None:
        """Begins with the checkpoint of a step, unless it has been asked, or another was just now."""
        now = time.monotonic()
        with self._lock:
            wanted = bool(self._prompts) and step is not None and step not in self._rows and not self._asking
            if step is None or not wanted or now - self._asked_at < _SECONDS_BETWEEN:
                return
            self._asked_at, self._asking = now, True

        def done(output: str, error: str | None) -> None:
            row = _row(output, error, len(self._prompts))
            with self._lock:
                self._rows = dict(sorted({**self._rows, step: row}.items())[-_MOST_STEPS:])
                self._asking = False

        options = ["--step", str(step), "--max-new-tokens", str(NEW_TOKENS), "--json"]
        self._children.begin(["generate", str(self._run_dir), *options, "--prompt", *self._prompts], done)

    def told(self) -> dict[str, Any]:
        """The prompts, and for each step, the newest first, a text for each of them or what went wrong."""
        with self._lock:
            rows = [{"step": step, **row} for step, row in reversed(self._rows.items())]
        return {"prompts": [harmless(prompt) for prompt in self._prompts], "rows": rows}


def _row(output: str, error: str | None, count: int) -> dict[str, Any]:
    if error is None:
        try:
            texts = [harmless(str(json.loads(line)["text"])) for line in output.splitlines()]
        except (ValueError, KeyError, TypeError):
            error = "it gave no texts"
        else:
            if len(texts) == count:
                return {"texts": texts, "problem": ""}
            error = f"it gave {len(texts)} texts for {count} prompts"
    return {"texts": [], "problem": harmless(error)}

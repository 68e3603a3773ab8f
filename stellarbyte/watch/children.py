"""Runs another command of StellarByte in the background, at the lowest priority and away from every accelerator."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

SECONDS = 600.0


class Children:
    """Commands that run one after the other, each in a process of its own; leaving the context ends them.

    environment: the environment that they get.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # A run may have the accelerator, which takes one process alone.
        self._environment = {**environment, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
        self._lock, self._turn = threading.Lock(), threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._ended = True
            running = list(self._running)
        for child in running:
            with suppress(OSError):
                child.kill()

    def begin(self, words: Sequence[str], done: Callable[[str, str | None], None]) -> None:
        """Starts `stellarbyte WORDS`; `done` gets what it wrote, and what went wrong in a line, or None."""
        threading.Thread(target=self._run, args=(words, done), name="command", daemon=True).start()

    def _run(self, words: Sequence[str], done: Callable[[str, str | None], None]) -> None:
        nice = shutil.which("nice")
        command = [*([nice, "-n", "19"] if nice else []), sys.executable, "-m", "stellarbyte", *words]
        with self._turn:
            with self._lock:
                if self._ended:
                    return
                child = subprocess.Popen(
                    command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                )
                self._running.add(child)
            try:
                output, error = child.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                output, error = child.communicate()
                error = f"it has not ended within {SECONDS:g} seconds"
            with self._lock:
                self._running.discard(child)
        lines = error.strip().splitlines()
        told = lines[-1].removeprefix("stellarbyte: error: ") if lines else f"it ended with code {child.returncode}"
        # A verdict of 1, such as of a damaged checkpoint, is an answer too.
        done(output, None if child.returncode in (0, 1) and output else told)

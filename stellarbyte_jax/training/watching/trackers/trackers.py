"""Hands the records of a run to trackers, none of which can stop or slow the training."""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.figures import split_name
from stellarbyte.files import write_json
from stellarbyte.reading import read_json_object
from stellarbyte_jax.training_config import TrackerName

LIBRARIES: Mapping[TrackerName, str] = {
    "tensorboard": "tensorboardX",
    "wandb": "wandb",
    "swanlab": "swanlab",
    "trackio": "trackio",
}

# What may wait for a tracker that is slower than training, in bytes: some hundred thousand records.
_MOST_WAITING = 64 << 20
# Seconds that the run waits for all its trackers at the end.
_LAST_WORDS = 15.0

_ID = re.compile(r"[a-z0-9]{16}")


class Trackers:
    """The trackers of a run. Each runs in a process of its own, and its output goes to RUN/trackers/NAME.log.

    A tracker that fails is left alone after one warning, and so is one that falls far behind. Signals for the run do
    not reach them, and if the run is killed they still send what they have got. With no names this does nothing.

    Args:
        names: the trackers to start.
        project: what the services group runs by.
        run_dir: the folder of the run.
        config: the run's config, as plain data.
        first_step: the number of steps that were done before.

    Raises:
        UserError: from `open`, if the folder cannot be written.
    """

    def __init__(
        self, names: Sequence[TrackerName], project: str, run_dir: Path, config: dict[str, Any], first_step: int
    ) -> None:
        self._names, self._folder = names, run_dir / "trackers"
        self._told = {"run_dir": str(run_dir), "project": project, "config": config, "first_step": first_step}
        self._children: list[_Child] = []

    def open(self) -> None:
        """Starts them; what goes wrong from here on is a warning."""
        if self._names:
            self._told["run_id"] = _run_id(self._folder)
            self._children = [_Child(name, self._folder / f"{name}.log") for name in self._names]
            self._send(self._told)

    def record(self, record: Mapping[str, Any]) -> None:
        """Hands on a record of metrics.jsonl; returns at once."""
        if self._children:
            self._send({"step": record["step"], "figures": _figures(record)})

    def close(self) -> None:
        """Ends them, and waits for `_LAST_WORDS` seconds at most."""
        deadline = time.monotonic() + _LAST_WORDS
        for child in self._children:
            child.end(deadline)

    def warnings(self) -> list[str]:
        """What has gone wrong since this was called last: at most one line a tracker."""
        new = [child for child in self._children if child.problem is not None and not child.told]
        for child in new:
            child.told = True
        goes_on = "training goes on, and metrics.jsonl has all figures"
        return [f"warning: {child.name} {child.problem}; {goes_on}" for child in new]

    def _send(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, default=str).encode() + b"\n"
        for child in self._children:
            child.send(line)


class _Child:
    """A tracker's process, and what waits to be sent to it. Nothing here waits, until the end."""

    def __init__(self, name: TrackerName, log: Path) -> None:
        self.name, self.told = name, False
        self.problem: str | None = None
        self._log, self._waiting = log, bytearray()
        with log.open("ab") as output:
            # In a session of its own, so that Ctrl-C and a closed terminal do not reach it.
            self._process = subprocess.Popen(
                _command(name), stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
            )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def send(self, line: bytes) -> None:
        if self.problem is not None:
            return
        self._waiting += line
        self._write()
        if len(self._waiting) > _MOST_WAITING:
            self.problem = f"is {_MOST_WAITING >> 20} MiB of records behind and gets no more"
            self._waiting.clear()

    def end(self, deadline: float) -> None:
        while self.problem is None and self._waiting and time.monotonic() < deadline:
            self._write()
            time.sleep(0.01)
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, deadline - time.monotonic()))
        code = self._process.poll()
        if self.problem is None and code is None:
            self.problem = f"has not sent everything after {_LAST_WORDS:g} seconds and goes on in the background"
        elif self.problem is None and code != 0:
            self.problem = self._failure()

    def _write(self) -> None:
        try:
            while self._waiting:
                del self._waiting[: os.write(self._pipe, self._waiting[: 1 << 16])]
        except BlockingIOError:
            return
        except OSError:  # it has ended
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1)
            self.problem = self._failure()

    def _failure(self) -> str:
        """What is wrong, by the last line that it wrote."""
        with suppress(OSError):
            lines = self._log.read_text(encoding="utf-8", errors="replace")[-4000:].strip().splitlines()
            if lines and self._process.poll() not in (None, -9):
                return f"has failed ({lines[-1]}; {self._log})"
        return f"has ended (see {self._log})"


def _command(name: TrackerName) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.child", name]


def check_installed(names: Sequence[TrackerName]) -> None:
    """Refuses trackers whose library is not installed; raises UserError."""
    for name in names:
        if find_spec(LIBRARIES[name]) is None:
            raise UserError(
                f"training.report_to {name} needs {LIBRARIES[name]}, which is not installed: "
                f"pip install 'stellarbyte[{name}]', or take it out of training.report_to"
            )


def _run_id(folder: Path) -> str:
    """The id of the run for all trackers, which is written to the folder when there is none yet."""
    path = folder / "run_id.json"
    if path.exists():
        found = read_json_object(path).get("run_id")
        if not isinstance(found, str) or not _ID.fullmatch(found):
            raise UserError(f"{path} has no run_id of 16 letters and digits: delete it, and trackers see a new run")
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}") from error
    new = secrets.token_hex(8)
    write_json(path, {"run_id": new})
    return new


def _figures(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record by the trackers' names: validation_loss is validation/loss, loss is train/loss."""
    figures: dict[str, float] = {}
    for name, value in record.items():
        if name == "step":
            continue
        is_validation, short = split_name(name)
        named = f"{'validation' if is_validation else 'train'}/{short}"
        if isinstance(value, list):
            figures |= {f"{named}/{i}": float(each) for i, each in enumerate(value) if isinstance(each, int | float)}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            figures[named] = float(value)
    return figures

"""Runs of several processes on this machine, started by the command line as a user would."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]

_STOPPED = """
import os, signal
from stellarbyte_jax.training.watching.metrics import MetricsLog
train = MetricsLog.train

def train_then_stop(self, step, values):
    train(self, step, values)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGTERM)

MetricsLog.train = train_then_stop
"""


def stopped_in_step(step: int) -> str:
    """What a process runs first to get a signal as soon as it has computed this step."""
    return _STOPPED.format(step=step)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@dataclass
class Job:
    """`count` processes of `devices` CPU devices each.

    Single processes may have overrides of their `own`, and Python code that they run `first`; some may be `missing`.
    """

    config: Path
    count: int
    devices: int
    overrides: dict[str, Any] = field(default_factory=dict)
    own: dict[int, dict[str, Any]] = field(default_factory=dict)
    first: dict[int, str] = field(default_factory=dict)
    missing: tuple[int, ...] = ()
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        address = f"127.0.0.1:{free_port()}"
        for index in set(range(self.count)) - set(self.missing):
            joining = {"coordinator_address": address, "num_processes": self.count, "process_id": index}
            options = {f"distributed.{name}": value for name, value in joining.items()}
            options |= self.overrides | self.own.get(index, {})
            code = f"{self.first.get(index, '')}\nfrom stellarbyte.door import program\nprogram()"
            program = ["-c", code] if index in self.first else ["-m", "stellarbyte"]
            command = [sys.executable, *program, "pretrain", str(self.config)]
            command += [f"--{name}={value}" for name, value in options.items()]
            # JAX warns of variables about proxies, of which tests of buckets set one.
            environment = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
            environment |= {"JAX_NUM_CPU_DEVICES": str(self.devices)}
            self.processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
                )
            )
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def until(self, reached: Callable[[], bool], timeout: float = 120) -> None:
        """Returns when this is so."""
        deadline = time.monotonic() + timeout
        while not reached():
            assert all(process.poll() is None for process in self.processes), self.ends()
            assert time.monotonic() < deadline, "too slow"
            time.sleep(0.05)

    def ends(self, timeout: float = 120) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each process, once all have ended."""
        ends = []
        for process in self.processes:
            out, errors = process.communicate(timeout=timeout)
            ends.append((process.returncode, out, errors))
        return ends

"""Law 6 at random moments: a run that is killed again and again, by random signals, ends as one that never was."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config
from test_jax.jobs import Job
from test_jax.runs import bits, records

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGKILL)


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "stellarbyte", "pretrain", str(config)]


def environment() -> dict[str, str]:
    return os.environ | {"JAX_NUM_CPU_DEVICES": "1"}


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_law_6_at_random_moments(seed: int, run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    steps = {"max_steps": 400, "eval_steps": 40}
    whole, parts = tmp_path / "whole.yaml", tmp_path / "parts.yaml"
    for path in (whole, parts):
        config = run_config(training=steps, checkpoint={"save_steps": 25})
        save_config(config, path)
        path.write_text(path.read_text().replace(config.output_dir, str(path.with_suffix(""))))
    began = time.monotonic()
    subprocess.run(command(whole), env=environment(), check=True, capture_output=True)
    longest = time.monotonic() - began

    generator = random.Random(seed)
    for _ in range(10):
        number = generator.choice(SIGNALS)
        process = subprocess.Popen(
            command(parts), env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            out, errors = process.communicate(timeout=generator.uniform(0.2, 0.6) * longest)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
            out, errors = process.communicate(timeout=120)
        assert process.returncode in (0, -number if number == signal.SIGKILL else 128 + number), errors
        assert "Traceback" not in errors
        if "stopped after step" in out:
            step = int(out.partition("stopped after step ")[2].partition(",")[0])
            assert (tmp_path / "parts" / "checkpoints" / str(step)).is_dir(), "what is said to be saved is saved"
    subprocess.run(command(parts), env=environment(), check=True, capture_output=True)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert bits(tmp_path / "parts") == bits(tmp_path / "whole")


# Arrays are written, but the checkpoint of step 20 never becomes whole.
SLOW_DISK = """
import threading
from orbax.checkpoint._src.checkpointers import async_checkpointer
commit = async_checkpointer._on_commit_callback

def slow(folder, *rest):
    if folder.get_final().name == "20":
        print("writing", flush=True)
        threading.Event().wait()
    commit(folder, *rest)

async_checkpointer._on_commit_callback = slow
"""


@pytest.mark.long
def test_a_disk_that_is_too_slow(run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(training={"max_steps": 10_000, "eval_steps": 5000}, checkpoint={"save_steps": 10})
    save_config(config, tmp_path / "config.yaml")
    with Job(tmp_path / "config.yaml", 1, 1, {"checkpoint.grace_seconds": 1}, first={0: SLOW_DISK}) as job:
        (process,) = job.processes
        assert process.stdout is not None
        while process.stdout.readline() != "writing\n":
            pass
        process.send_signal(signal.SIGUSR1)
        ((code, _, errors),) = job.ends()
    assert code == 138
    assert errors.splitlines() == [
        "stellarbyte: SIGUSR1: finishing this step, then saving; once more to stop at once",
        "stellarbyte: interrupted by SIGUSR1: not saved within checkpoint.grace_seconds 1.0; "
        "the checkpoint of step 10 stands",
    ]
    assert [entry.name for entry in (tmp_path / "run" / "checkpoints").iterdir()] == ["10"]

"""Runs that signals end at random moments, and a disk that is too slow for a last save."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config
from test_jax.jobs import Job
from torture import torture


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_law_6_at_random_moments(seed: int, run_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = run_config(training={"max_steps": 240, "eval_steps": 16}, checkpoint={"save_steps": 12})
    save_config(config, tmp_path / "config.yaml")
    endings, faults = torture(tmp_path / "config.yaml", 4, seed, [], print)
    assert endings and not faults


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

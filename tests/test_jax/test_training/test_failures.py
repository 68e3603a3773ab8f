"""What fails between two saves ends a run saved, with one sentence, on one process and on several."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.display import Display
from stellarbyte.errors import UserError
from stellarbyte.interrupt import Interrupt
from stellarbyte_jax.checkpoints.checkpoint import latest_step
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.data.loader import Take, TrainLoader
from stellarbyte_jax.processes.joined import JoinedProcesses
from stellarbyte_jax.training.failures import Failures, ReadAhead
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.watching.metrics import MetricsLog
from test_jax.jobs import Job
from test_jax.runs import bits, losses, records
from test_jax.test_processes.test_joined import at_once, team

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]
Disturb = Callable[[int, Callable[[], None]], None]


def batches_until(bad: int) -> Generator[dict[str, np.ndarray], None, None]:
    for number in range(bad):
        yield {"number": np.array(number)}
    raise UserError("a shard is damaged")


def test_batches_are_read_ahead_but_no_further_than_they_are_needed() -> None:
    failures = Failures()
    ahead = ReadAhead(batches_until(5), 5, failures)
    assert [int(next(ahead)["number"]) for _ in range(5)] == list(range(5))
    assert failures.first is None
    ahead = ReadAhead(batches_until(5), 9, failures)
    assert [(int(next(ahead)["number"]), failures.first is None) for _ in range(3)] == [
        (0, True),
        (1, True),
        (2, False),
    ]
    assert [int(next(ahead)["number"]) for _ in range(2)] == [3, 4]
    assert str(failures.first) == "a shard is damaged"


def test_other_batches_take_the_place_of_those_ahead() -> None:
    first = batches_until(9)
    ahead = ReadAhead(first, 9, Failures())
    next(ahead)
    ahead.restart(({"number": np.array(number)} for number in range(20, 30)), 2)
    assert [int(next(ahead)["number"]) for _ in range(2)] == [20, 21]
    assert first.gi_frame is None, "closed, so that its threads end"


@pytest.mark.parametrize("seed", range(8))
def test_who_cannot_read_a_batch_has_those_of_the_agreed_last_step(seed: int) -> None:
    """Steps end when all processes have begun them; each looks at a step's figures once it has begun the next."""
    generator = np.random.default_rng(seed)
    bad = int(generator.integers(3, 20))
    naps = generator.random(3) * 0.003
    begun = [threading.Barrier(3) for _ in range(40)]
    ended = [threading.Event() for _ in range(40)]

    def device(step: int) -> None:
        begun[step].wait()
        ended[step].set()

    def run(member: JoinedProcesses) -> int:
        failures = Failures()
        ahead = ReadAhead(batches_until(bad if member.index == seed % 3 else 40), 40, failures)
        for step in range(1, 40):
            next(ahead)  # raises IndexError if there is none
            threading.Thread(target=device, args=(step,), daemon=True).start()
            if step > 1:
                assert ended[step - 1].wait(20)
            time.sleep(naps[member.index])
            if member.stop_after(step, failures.first is not None):
                return step
        raise AssertionError("never stopped")

    with team(3) as members:
        stops = at_once(members, run)
    assert len(set(stops)) == 1
    assert bad - 3 <= stops[0] <= bad


def gone_on(config: RunConfig, finished_run: Path) -> None:
    """The same command ends as a run that nothing has happened to."""
    assert pretrain(config)
    assert records(config.output_dir) == records(finished_run)
    assert bits(config.output_dir) == bits(finished_run)


@pytest.mark.usefixtures("one_device")
def test_validation_shards_that_are_gone(
    run_config: MakeConfig, finished_run: Path, tmp_path: Path, disturb: Disturb
) -> None:
    shutil.copytree(run_config().data.shards, tmp_path / "shards")
    config = run_config(data={"shards": str(tmp_path / "shards")}, checkpoint={"save_steps": 100})
    split = tmp_path / "shards" / "validation-00000.npy"
    disturb(4, lambda: split.rename(tmp_path / "elsewhere"))
    with pytest.raises(UserError, match=r"validation-00000.*; saved after step 6: the same command goes on from there"):
        pretrain(config)
    assert latest_step(config.output_dir) == 6
    (tmp_path / "elsewhere").rename(split)
    gone_on(config, finished_run)


@pytest.mark.usefixtures("one_device")
def test_a_batch_that_cannot_be_read(
    run_config: MakeConfig, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batches(self: TrainLoader, takes: Callable[[int], Take], start: int) -> Iterator[dict[str, np.ndarray]]:
        yield from (self.batch(takes(step)) for step in range(start, 8))
        raise UserError("a shard is damaged")

    config = run_config(checkpoint={"save_steps": 100})
    with monkeypatch.context() as patch:
        patch.setattr(TrainLoader, "batches", batches)
        with pytest.raises(UserError, match=r"^a shard is damaged; saved after step 6: the same command goes on from"):
            pretrain(config)
        assert latest_step(config.output_dir) == 6
        patch.setattr(TrainLoader, "batches", lambda self, takes, start: batches(self, takes, start + 8))
        with pytest.raises(UserError, match=r"^a shard is damaged; saved after step 6: "):
            pretrain(config)
        with pytest.raises(UserError, match=r"^a shard is damaged$"):
            pretrain(replace(config, output_dir=config.output_dir + "-new"))
    gone_on(config, finished_run)


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("signalled", [False, True])
def test_a_reader_of_stdout_that_leaves_or_a_terminal_that_closes(
    run_config: MakeConfig, finished_run: Path, disturb: Disturb, monkeypatch: pytest.MonkeyPatch, signalled: bool
) -> None:
    def say(*_: object) -> None:
        raise UserError("the output cannot be written: Broken pipe")

    config = run_config(checkpoint={"save_steps": 100})
    with monkeypatch.context() as patch:

        def leave() -> None:
            patch.setattr(Display, "say", say)
            MetricsLog.say(logs[0], "anything")
            if signalled:
                os.kill(os.getpid(), signal.SIGHUP)

        logs: list[MetricsLog] = []
        enter = MetricsLog.__enter__
        patch.setattr(MetricsLog, "__enter__", lambda self: logs.append(self) or enter(self))
        disturb(4, leave)
        interrupt = Interrupt()
        if signalled:
            assert not pretrain(config, interrupt=interrupt)
            assert interrupt.number == signal.SIGHUP
        else:
            with pytest.raises(UserError, match=r"^the output cannot be written: Broken pipe; saved after step 4: "):
                pretrain(config)
    assert latest_step(config.output_dir) == 4
    gone_on(config, finished_run)


def test_metrics_that_cannot_be_written_any_more_are_noted(tmp_path: Path) -> None:
    failures = Failures()
    with MetricsLog(tmp_path, 0, 3, failures=failures) as log:
        log.train(1, {"loss": 1.0, "tokens": 1})
        assert log._file is not None
        os.close(log._file.fileno())
        log.train(2, {"loss": 1.0, "tokens": 1})
        log.train(3, {"loss": 1.0, "tokens": 1})
    assert str(failures.first) == f"{tmp_path / 'metrics.jsonl'} cannot be written: Bad file descriptor"
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 1


GOES_ON = "the same command goes on from there"

CANNOT_READ_BATCH_8 = """
from stellarbyte.errors import UserError
from stellarbyte_jax.data.loader import TrainLoader

def batches(self, takes, start):
    yield from (self.batch(takes(step)) for step in range(start, 8))
    raise UserError("a shard is damaged")

TrainLoader.batches = batches
"""


def config_of_two(run_config: MakeConfig, tmp_path: Path, **training: int) -> Path:
    """Two processes, that save nothing unless they stop; the config's file."""
    steps = {"max_steps": 3000, "eval_steps": 1000, "eval_batches": 1} | training
    save_config(run_config(mesh={"data": 2}, training=steps, checkpoint={"save_steps": 3000}), tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


@pytest.mark.long
def test_one_of_two_processes_cannot_read_a_batch(run_config: MakeConfig, tmp_path: Path) -> None:
    with Job(config_of_two(run_config, tmp_path), count=2, devices=1, first={1: CANNOT_READ_BATCH_8}) as job:
        ends = job.ends()
    saved = latest_step(tmp_path / "run")
    assert saved in (6, 7, 8)
    assert [code for code, *_ in ends] == [2, 2], ends
    sentence = f"a shard is damaged; saved after step {saved}: {GOES_ON}"
    assert ends[1][2] == f"stellarbyte: error: {sentence}\n"
    asked = "stellarbyte: process 1 is to stop: all finish the same step, then save\n"
    assert ends[0][2] == f"{asked}stellarbyte: error: process 1 has ended: {sentence}\n"


@pytest.mark.long
@pytest.mark.parametrize("closes", [False, True])
def test_the_reader_of_two_processes_leaves_or_their_terminal_closes(
    run_config: MakeConfig, tmp_path: Path, closes: bool
) -> None:
    run_dir = tmp_path / "run"
    with Job(config_of_two(run_config, tmp_path, eval_steps=5), count=2, devices=1) as job:
        job.until(lambda: (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) >= 4)
        assert job.processes[0].stdout is not None
        job.processes[0].stdout.close()
        for process in job.processes if closes else ():
            process.send_signal(signal.SIGHUP)
        ends = job.ends()
    saved = latest_step(run_dir)
    assert saved is not None and saved < 3000
    assert [code for code, *_ in ends] == ([129, 129] if closes else [2, 2]), ends
    if not closes:
        sentence = f"the output cannot be written: Broken pipe; saved after step {saved}: {GOES_ON}\n"
        assert ends[0][2] == f"stellarbyte: error: {sentence}"
        assert ends[1][2] == f"stellarbyte: error: process 0 has ended: {sentence}"


@pytest.mark.long
def test_the_validation_shards_of_two_processes_are_gone(run_config: MakeConfig, tmp_path: Path) -> None:
    shutil.copytree(run_config().data.shards, tmp_path / "shards")
    config = run_config(data={"shards": str(tmp_path / "shards")})
    path = config_of_two(lambda **sections: run_config(data={"shards": config.data.shards}, **sections), tmp_path)
    with Job(path, count=2, devices=1, overrides={"training.eval_steps": 100}) as job:
        job.until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and len(losses(tmp_path / "run")) >= 4)
        (tmp_path / "shards" / "validation-00000.npy").unlink()
        ends = job.ends()
    saved = latest_step(tmp_path / "run")
    assert saved is not None and saved % 100 == 0
    assert [code for code, *_ in ends] == [2, 2], ends
    for _, _, said in ends:
        assert "validation-00000.npy is missing" in said and said.endswith(f"; saved after step {saved}: {GOES_ON}\n")

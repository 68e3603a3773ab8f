"""Several processes train as one would, agree, and end together; nobody is left to wait."""

import dataclasses
import functools
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax._src.lib import _jax

from stellarbyte.command_line import FAULT
from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import latest_step, load_metadata, load_params, restore_params
from stellarbyte_jax.config import MeshConfig, RunConfig
from stellarbyte_jax.config_file import load_run_config, save_config
from stellarbyte_jax.distributed_config import DistributedConfig
from stellarbyte_jax.processes.cluster import Place, find_place
from stellarbyte_jax.processes.joined import ALONE, PROCESS_LOST, JoinedProcesses, Processes
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.jobs import Job, free_port
from test_jax.runs import losses

MakeConfig = Callable[..., RunConfig]

on_two_and_four = pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.long)])


@contextmanager
def team(count: int) -> Iterator[list[JoinedProcesses]]:
    """Processes that are threads of this one, each with a client of JAX's coordination service."""
    address = f"127.0.0.1:{free_port()}"
    service = _jax.get_distributed_runtime_service(address, count)
    clients = [_jax.get_distributed_runtime_client(address, index, init_timeout=60) for index in range(count)]
    syncs = [_jax.create_preemption_sync_manager() for _ in clients]
    sigterm = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda client: client.connect(), clients))
        for sync, client in zip(syncs, clients, strict=True):
            sync.initialize(client)
        signal.signal(signal.SIGTERM, sigterm)  # which each of them has taken
        try:
            yield [JoinedProcesses(index, count, *pair) for index, pair in enumerate(zip(clients, syncs, strict=True))]
        finally:
            for sync in syncs:
                sync.shutdown()
            list(pool.map(lambda client: client.shutdown(), clients))
    service.shutdown()


def at_once(members: list[Any], work: Callable[[Any], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(work, members))


def test_alone_there_is_nothing_to_agree_on() -> None:
    assert ALONE.share("x") == ["x"]
    assert ALONE.stop_after(3, requested=True) and not ALONE.stop_after(3, requested=False)
    ALONE.compare({"a": 1})


def test_all_hear_what_each_has_to_say() -> None:
    with team(5) as members:
        shared = at_once(members, lambda member: [member.share([member.index, turn]) for turn in range(100)])
    assert shared == [[[[index, turn] for index in range(5)] for turn in range(100)]] * 5


def test_what_differs_is_named_everywhere() -> None:
    with team(3) as members:

        def compare(member: JoinedProcesses) -> str:
            fields = {"training": {"batch_size": 8, "max_steps": 9}, "sha256": "a"}
            if member.index == 2:
                fields = {"training": {"batch_size": 4, "max_steps": 9}, "sha256": "b"}
            with pytest.raises(UserError) as caught:
                member.compare(fields)
            return str(caught.value)

        said = at_once(members, compare)
        at_once(members, lambda member: member.compare({"a": 1}))
    assert len(set(said)) == 1
    assert "process 2 is about to train something else than process 0" in said[0]
    assert "training.batch_size (4 there, 8 in process 0), sha256 (b there, a in process 0)" in said[0]


@pytest.mark.parametrize("seed", range(5))
def test_all_stop_after_the_same_step(seed: int) -> None:
    """Processes that run at their own pace, some of which are signalled."""
    generator = np.random.default_rng(seed)
    signalled = {index: int(generator.integers(3, 30)) for index in generator.choice(4, 1 + seed % 2, replace=False)}
    naps = generator.random(4) * 0.004

    def run(member: JoinedProcesses) -> int:
        for step in range(1, 2000):
            time.sleep(naps[member.index])
            if member.stop_after(step, requested=step >= signalled.get(member.index, 5000)):
                return step
        raise AssertionError("never stopped")

    with team(4) as members:
        stops = at_once(members, run)
    assert len(set(stops)) == 1
    assert stops[0] >= min(signalled.values())


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_processes": 2}, "distributed.coordinator_address is neither given nor detected"),
        ({"coordinator_address": "a:1", "num_processes": 2}, "distributed.process_id is neither given nor detected"),
        ({"local_device_ids": (0,)}, "coordinator_address is neither given nor detected"),
    ],
)
def test_settings_by_half_are_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        find_place(DistributedConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"coordinator_address": "host"}, "distributed.coordinator_address host is not host:port"),
        ({"coordinator_address": "host:99999"}, "is not host:port"),
        ({"num_processes": 2, "process_id": 2}, "process_id 2 is none of the 2 processes"),
        ({"process_id": -1}, "process_id -1 must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        DistributedConfig(**fields)


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[07-08]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
}


def test_a_cluster_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_place(DistributedConfig()) is None
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert find_place(DistributedConfig()) == Place("node07:61441", 4, 3, (1,))
    assert find_place(DistributedConfig(detect=False)) is None
    given = DistributedConfig("[fd00::7]:12", num_processes=9, process_id=7, local_device_ids=(2, 3))
    assert find_place(given) == Place("[fd00::7]:12", 9, 7, (2, 3))
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_place(DistributedConfig()) is None


def alone(config: RunConfig, name: str, folder: Path, steps: int, disturb: Callable) -> list[float]:
    """Losses of the first steps on one device of this process."""
    config = dataclasses.replace(config, output_dir=str(folder / name), mesh=MeshConfig(data=1))
    disturb(steps, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert not pretrain(config)
    return losses(config.output_dir)


def save_run(run_config: MakeConfig, folder: Path) -> RunConfig:
    """A run over four devices that goes on until it is ended; two processes may read the same rows."""
    config = run_config(
        mesh={"data": 1, "fsdp": 2, "tensor": 2},
        training={"max_steps": 3000, "eval_steps": 1000, "eval_batches": 1},
        checkpoint={"save_steps": 5},
    )
    save_config(config, folder / "config.yaml")
    return config


@on_two_and_four
def test_law_5_and_a_signal_to_one(count: int, run_config: MakeConfig, tmp_path: Path, disturb: Callable) -> None:
    """It ends all alike, and one process goes on, on another mesh."""
    config = save_run(run_config, tmp_path)
    run_dir = Path(config.output_dir)
    with Job(tmp_path / "config.yaml", count, devices=4 // count) as job:
        job.until(lambda: (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) >= 4)
        job.processes[1].send_signal(signal.SIGTERM)
        ends = job.ends()
    assert [code for code, *_ in ends] == [143] * count, ends
    stopped = latest_step(run_dir)
    assert stopped is not None and f"stopped after step {stopped}, saved in {run_dir}" in ends[0][1]
    assert ends[0][2] == "stellarbyte: process 1 is to stop: all finish the same step, then save\n"
    assert ends[1][1] == "" and "SIGTERM: finishing this step" in ends[1][2]
    assert load_run_config(run_dir / "config.yaml") == config
    assert load_metadata(run_dir)[1] == stopped

    if count == 2:  # on the one device whose program the run alone needs as well
        together = alone(config, run_dir.name, tmp_path, stopped + 3, disturb)
    else:
        disturb(stopped + 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not pretrain(dataclasses.replace(config, mesh=MeshConfig(data=4, context=2)))
        together = losses(run_dir)
    assert len(together) == stopped + 3
    expected = alone(config, "alone", tmp_path, stopped + 3, disturb)
    assert np.allclose(together, expected, rtol=1e-5, atol=0)


@pytest.mark.long
@pytest.mark.parametrize(("count", "killed"), [(2, 1), (2, 0), (4, 0), (4, 2)])
def test_a_process_that_is_killed_ends_the_others(
    count: int, killed: int, run_config: MakeConfig, tmp_path: Path, disturb: Callable
) -> None:
    """Its last checkpoint stays, and one process goes on."""
    config = save_run(run_config, tmp_path)
    run_dir = Path(config.output_dir)
    with Job(tmp_path / "config.yaml", count, 4 // count, overrides={"distributed.lost_after": 8}) as job:
        job.until(lambda: latest_step(run_dir) is not None)
        job.processes[killed].kill()
        ends = job.ends()
    assert [code for code, *_ in ends] == [
        -signal.SIGKILL if index == killed else PROCESS_LOST for index in range(count)
    ]
    for index in set(range(count)) - {killed}:
        said = ends[index][2]
        assert said.startswith(f"stellarbyte: error: process {killed} of {count} has died"), ends

    saved = latest_step(run_dir)
    assert saved is not None and saved >= 5 and saved % 5 == 0
    disturb(saved + 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(dataclasses.replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2)))
    expected = alone(config, "alone", tmp_path, saved + 3, disturb)
    assert np.allclose(losses(run_dir), expected, rtol=1e-5, atol=0)


@on_two_and_four
def test_processes_that_differ_all_end(count: int, run_config: MakeConfig, tmp_path: Path) -> None:
    save_run(run_config, tmp_path)
    with Job(tmp_path / "config.yaml", count, 4 // count, own={1: {"optimizer.learning_rate": 0.5}}) as job:
        ends = job.ends()
    sentence = "process 1 is about to train something else than process 0: optimizer.learning_rate (0.5 there, 0.01 in"
    for code, _, said in ends:
        assert code == 2 and sentence in said and said.count("\n") == 1, ends


BROKEN = """
from stellarbyte_jax.training.guard import Guard

def after(self, step, metrics, figures):
    raise RuntimeError("a fault of ours")

Guard.after = after
"""


@pytest.mark.long
@pytest.mark.parametrize("count", [2, 4])
def test_a_fault_of_one_ends_all(count: int, run_config: MakeConfig, tmp_path: Path) -> None:
    """What fails may fail because another process has died: only when that is ruled out does it speak."""
    save_run(run_config, tmp_path)
    overrides = {"distributed.lost_after": 8}
    with Job(tmp_path / "config.yaml", count, 4 // count, overrides, first={1: BROKEN}) as job:
        ends = job.ends()
    assert [code for code, *_ in ends] == [FAULT] * count, ends
    sentence = "stellarbyte: error: process 1 has ended with RuntimeError: a fault of ours (see its own output)\n"
    assert [said for *_, said in ends if said != ends[1][2]] == [sentence] * (count - 1)
    assert ends[1][2].startswith("Traceback") and ends[1][2].endswith("RuntimeError: a fault of ours\n")


@on_two_and_four
def test_all_end_if_one_does_not_come(count: int, run_config: MakeConfig, tmp_path: Path) -> None:
    save_run(run_config, tmp_path)
    with Job(tmp_path / "config.yaml", count, 4 // count, {"distributed.start_timeout": 2}, missing=(1,)) as job:
        ends = job.ends()
    for code, _, said in ends:
        assert code == 2 and said.count("\n") == 1, ends
        assert f"{count} processes should have come to" in said and "within 2 s, but these have not: 1; start" in said


@pytest.mark.long
def test_processes_that_disagree_on_their_number_end(run_config: MakeConfig, tmp_path: Path) -> None:
    save_run(run_config, tmp_path)
    with Job(tmp_path / "config.yaml", 2, 2, own={1: {"distributed.num_processes": 3}}) as job:
        ends = job.ends()
    for code, _, said in ends:
        assert code == 2 and "distributed.num_processes (3 there, 2 in process 0)" in said, ends


def test_a_port_that_is_taken(run_config: MakeConfig, tmp_path: Path) -> None:
    save_run(run_config, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = "{}:{}".format(*server.getsockname())
        with Job(tmp_path / "config.yaml", 2, 2, {"distributed.coordinator_address": address}, missing=(1,)) as job:
            ((code, _, said),) = job.ends()
    assert code == 2 and f"port {address.rpartition(':')[2]} cannot be used (Address already in use)" in said


def test_the_environment_counts_as_well(
    run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_config(run_config(), tmp_path / "config.yaml")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1234")
    assert main(["pretrain", str(tmp_path / "config.yaml"), "--distributed.num_processes", "2"]) == 2
    assert "distributed.process_id is neither given nor detected" in capsys.readouterr().err


def test_what_is_broken_for_one_process_is_passed_over_by_all(finished_run: Path, tmp_path: Path) -> None:
    """Another process, played by the answers that it gives, cannot read the newest checkpoint."""

    class Pair(Processes):
        answers = iter([[10, 12], "cut short"])

        def share(self, value: Any) -> list[Any]:
            return [value, next(self.answers, None)]

    shutil.copytree(finished_run, tmp_path / "run")
    params = jax.device_put(load_params(finished_run)[0])
    _, step = restore_params(tmp_path / "run", params, processes=Pair())
    assert step == 10

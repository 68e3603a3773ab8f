"""Runs, token shards and weights to start from that lie in a bucket."""

import dataclasses
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from buckets import Network
from stellarbyte import bucket_errors, bucket_lock
from stellarbyte.errors import UserError
from stellarbyte.places import place
from stellarbyte_jax.amendments import read_amendments
from stellarbyte_jax.checkpoints import s3_arrays
from stellarbyte_jax.checkpoints.checkpoint import checkpoint_steps, latest_step
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.training.evaluation import evaluate_run
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.jobs import stopped_in_step
from test_jax.poison import batches_of, poison
from test_jax.runs import bits, records
from test_jax.test_processes.test_going_on import run_job
from test_jax.test_training.test_guard import incidents

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("one_device", "traced_once")]

MakeConfig = Callable[..., RunConfig]
both = pytest.mark.parametrize("bucket", ["s3", "gs"], indirect=True)


def in_bucket(folder: str | Path, target: str) -> str:
    for file in Path(folder).rglob("*"):
        if file.is_file():
            (place(target) / file.relative_to(folder).as_posix()).upload(file)
    return target


def fetched(run_dir: str, here: Path, *others: str) -> Path:
    """A folder with the run's metrics.jsonl, and other files of it."""
    for name in ("metrics.jsonl", *others):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        place(f"{run_dir}/{name}").download(here / name)
    return here


def steps_of(ledger: Path) -> list[str]:
    return [line for line in ledger.read_text().splitlines() if line.startswith('{"step"')]


@both
def test_a_run_in_a_bucket_is_the_run_on_disk(
    bucket: str, run_config: MakeConfig, disturb: Callable, tmp_path: Path
) -> None:
    config = run_config()
    data = dataclasses.replace(
        config.data, shards=in_bucket(config.data.shards, f"{bucket}/shards"), cache_dir=str(tmp_path / "cache")
    )
    config = dataclasses.replace(config, data=data)
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    assert pretrain(whole)
    config = dataclasses.replace(config, output_dir=f"{bucket}/run")
    disturb(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(config)
    assert checkpoint_steps(config.output_dir) == [5, 8]
    assert pretrain(config)
    assert records(fetched(config.output_dir, tmp_path / "fetched")) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)
    run = place(config.output_dir)
    assert {"checkpoints", "config.yaml", "metrics.jsonl"} <= (there := {entry.name for entry in run.iterdir()})
    assert ".stellarbyte.lock" not in there
    assert evaluate_run(config.output_dir)[0] == evaluate_run(whole.output_dir)[0]
    assert not Path("gs:").exists() and not Path("s3:").exists()


@both
def test_a_run_in_a_bucket_rolls_back_is_amended_and_keeps_a_ledger(
    bucket: str, run_config: MakeConfig, disturb: Callable, tmp_path: Path
) -> None:
    config = run_config(training={"on_not_finite": "rollback"}, data={"ledger": True})
    ledger = "ledger/process-00000.jsonl"
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    config = dataclasses.replace(config, output_dir=f"{bucket}/run")
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, 6))
        assert pretrain(whole)
        disturb(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not pretrain(config)
        assert pretrain(config)
    longer = {"training": dataclasses.replace(config.training, max_steps=14)}
    for run in (config, whole):
        with pytest.raises(UserError, match=r"training\.max_steps \(was 12, now 14\)"):
            pretrain(dataclasses.replace(run, **longer))
        assert pretrain(dataclasses.replace(run, **longer), amend=True)
        assert pretrain(dataclasses.replace(run, **longer))
    here = fetched(config.output_dir, tmp_path / "fetched", ledger, "divergence.jsonl")
    assert records(here) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)
    assert steps_of(here / ledger) == steps_of(tmp_path / "whole" / ledger)
    assert [each["done"] for each in incidents(here)] == ["rolled back"] and incidents(here) == incidents(
        whole.output_dir
    )
    (ours,), (theirs,) = read_amendments(config.output_dir), read_amendments(whole.output_dir)
    assert (ours.step, ours.rows, ours.changes) == (theirs.step, theirs.rows, theirs.changes)


def test_two_processes_share_a_run_in_a_bucket(gs: str, run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config(mesh={"data": 2}, checkpoint={"save_steps": 100})
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    run_job(whole, tmp_path, [0, 0])
    config = dataclasses.replace(config, output_dir=f"{gs}/two/run")
    run_job(config, tmp_path, [143, 143], first={1: stopped_in_step(4)})
    assert latest_step(config.output_dir) in (4, 5, 6)
    run_job(config, tmp_path, [0, 0])
    assert records(fetched(config.output_dir, tmp_path / "fetched")) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)


@pytest.mark.parametrize("state", ["busy", "away"])
def test_a_bucket_that_is_away_for_some_seconds_costs_nothing(
    s3: str, network: Network, state: str, run_config: MakeConfig, disturb: Callable, tmp_path: Path
) -> None:
    config = run_config()
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    assert pretrain(whole)
    config = dataclasses.replace(config, output_dir=f"{s3}/{state}/run")

    def lose() -> None:
        network.become(state)  # type: ignore[arg-type]
        threading.Timer(8, network.become, ["whole"]).start()

    disturb(10, lose)
    assert pretrain(config)
    assert checkpoint_steps(config.output_dir) == [10, 12]
    assert records(fetched(config.output_dir, tmp_path / "fetched")) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)


def test_a_bucket_that_stays_away_ends_the_run_with_a_sentence_and_its_last_checkpoint(
    s3: str,
    network: Network,
    run_config: MakeConfig,
    disturb: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bucket_errors, "SECONDS", 1.0)
    monkeypatch.setattr(bucket_lock, "SILENT_SECONDS", 1.0)  # the lost run's lock stays behind
    monkeypatch.setattr(s3_arrays, "_RETRIES", {"max_retries": 1})
    config = run_config()
    whole = dataclasses.replace(config, output_dir=str(tmp_path / "whole"))
    assert pretrain(whole)
    config = dataclasses.replace(config, output_dir=f"{s3}/gone/run")

    def lose() -> None:
        while checkpoint_steps(config.output_dir) != [5]:  # it is saved in the background
            threading.Event().wait(0.1)
        network.become("away")

    disturb(9, lose)
    with pytest.raises(UserError, match=r"s3://runs/gone/run/.* cannot be written, tried for"):
        pretrain(config)
    network.become("whole")
    assert checkpoint_steps(config.output_dir) == [5]
    assert pretrain(config)
    assert records(fetched(config.output_dir, tmp_path / "fetched")) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)
    assert not Path("s3:").exists()


@both
def test_weights_to_start_from_may_lie_in_a_bucket(bucket: str, run_config: MakeConfig, tmp_path: Path) -> None:
    config = run_config(training={"max_steps": 2}, optimizer={"warmup_steps": 1})
    before = dataclasses.replace(config, output_dir=f"{bucket}/before")
    assert pretrain(before)
    after = dataclasses.replace(config, output_dir=str(tmp_path / "after"), init_from=before.output_dir)
    assert pretrain(after)
    local = dataclasses.replace(config, output_dir=str(tmp_path / "local"))
    assert pretrain(local)
    here = dataclasses.replace(config, output_dir=str(tmp_path / "here"), init_from=local.output_dir)
    assert pretrain(here)
    assert bits(after.output_dir) == bits(here.output_dir)
    with pytest.raises(UserError, match=f"init_from {bucket}/nothing holds no checkpoints"):
        pretrain(dataclasses.replace(config, output_dir=str(tmp_path / "x"), init_from=f"{bucket}/nothing"))


@both
def test_a_broken_checkpoint_in_a_bucket_is_set_aside(bucket: str, run_config: MakeConfig) -> None:
    config = dataclasses.replace(run_config(training={"max_steps": 10}), output_dir=f"{bucket}/run")
    assert pretrain(config)
    newest = place(config.output_dir) / "checkpoints" / "10"
    (newest / "metadata" / "metadata").write_bytes(b"{}")
    assert pretrain(config)
    there = {entry.name for entry in newest.parent.iterdir()}
    assert there == {"5", "10"} and checkpoint_steps(config.output_dir) == [5, 10]
    assert (newest.parent.parent / "broken" / "10" / "params" / "manifest.ocdbt").exists()

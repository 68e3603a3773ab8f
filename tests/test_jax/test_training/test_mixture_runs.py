"""Whole runs on sources that are mixed by weights: resumed bit-equal, audited clean, and refused if weights change."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.door import main
from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import load_metadata
from stellarbyte_jax.config import MeshConfig, RunConfig, SourceConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.jobs import Job, stopped_in_step
from test_jax.poison import batches_of, poison
from test_jax.runs import Crash, bits, crash, losses, records

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def mixed_run(run_config: MakeConfig, tmp_path: Path) -> RunConfig:
    """Twelve steps of two sources, the smaller of which is read several times; with a ledger."""
    config = run_config()
    lines = Path(config.data.sources[0].path).read_text(encoding="utf-8").splitlines(keepends=True)
    for name, part in (("small", lines[:4]), ("large", lines[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(part), encoding="utf-8")
    sources = (
        SourceConfig(str(tmp_path / "small.jsonl"), weight=0.5),
        SourceConfig(str(tmp_path / "large.jsonl"), weight=0.5),
    )
    data = dataclasses.replace(config.data, sources=sources, shards=str(tmp_path / "shards"), ledger=True)
    prepare(data, report=lambda _: None)
    return dataclasses.replace(config, data=data)


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_a_mixed_run_is_resumed_bit_equal_and_its_ledger_is_clean(
    mixed_run: RunConfig, disturb: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = dataclasses.replace(mixed_run, output_dir=mixed_run.output_dir + "-whole")
    assert pretrain(whole)
    told = capsys.readouterr().out
    assert "small.jsonl: " in told and "50.0% of tokens" in told and "epochs" in told
    for step in (3, 8):
        disturb(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not pretrain(mixed_run)
    assert pretrain(mixed_run)
    assert records(mixed_run.output_dir) == records(whole.output_dir)
    assert bits(mixed_run.output_dir) == bits(whole.output_dir)
    capsys.readouterr()
    for run in (mixed_run, whole):
        assert main(["data", "audit", run.output_dir, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["clean"], found["first_step"], found["last_step"], found["samples"]) == (True, 1, 12, 48)
        assert [source["samples"] for source in found["sources"]] == [24, 24]
        assert found["starts"] == (3 if run is mixed_run else 1)

    first, second = mixed_run.data.sources
    for weights in ((0.9, 0.1), (None, None)):
        sources = tuple(dataclasses.replace(s, weight=w) for s, w in zip((first, second), weights, strict=True))
        other = dataclasses.replace(mixed_run, data=dataclasses.replace(mixed_run.data, sources=sources))
        with pytest.raises(UserError, match=r"data.sources.0.weight \(was 0.5, now"):
            pretrain(other)
    # The ledger and the sources' paths may change.
    Path(first.path).rename(first.path + "l.jsonl")
    moved = (SourceConfig(first.path + "l.jsonl", weight=0.5), second)
    assert pretrain(
        dataclasses.replace(mixed_run, data=dataclasses.replace(mixed_run.data, sources=moved, ledger=False))
    )


def reweighted(config: RunConfig, *weights: float) -> RunConfig:
    sources = (dataclasses.replace(s, weight=w) for s, w in zip(config.data.sources, weights, strict=True))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, sources=tuple(sources)))


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_law_6_of_a_mixture_that_is_amended_twice(
    mixed_run: RunConfig, disturb: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every sample still comes once in its source's epochs, which the audit proves; other data begin anew after it."""
    whole = dataclasses.replace(mixed_run, output_dir=mixed_run.output_dir + "-whole")
    stop = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    for config in (whole, mixed_run):
        disturb(4, stop)
        assert not pretrain(config)
        disturb(9, stop)
        assert not pretrain(reweighted(config, 0.9, 0.1), amend=True)
        if config is mixed_run:
            with pytest.raises(UserError, match="it was amended after step"):
                pretrain(config)
            disturb(11, crash)  # amended, and killed before it has saved anything since
            with pytest.raises(Crash):
                pretrain(reweighted(config, 0.2, 0.8), amend=True)
        assert pretrain(reweighted(config, 0.2, 0.8), amend=config is whole)
    assert records(mixed_run.output_dir) == records(whole.output_dir)
    assert bits(mixed_run.output_dir) == bits(whole.output_dir)
    position = load_metadata(mixed_run.output_dir)[0].data_position
    assert [weights for _, weights in position["mixture"]] == [[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]

    shorter = dataclasses.replace(mixed_run.training, max_steps=16)
    longer = dataclasses.replace(reweighted(mixed_run, 0.2, 0.8), training=shorter)
    longer = dataclasses.replace(longer, data=dataclasses.replace(longer.data, sequence_length=12))
    assert pretrain(longer, amend=True)
    capsys.readouterr()
    assert main(["data", "audit", mixed_run.output_dir, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["clean"], found["last_step"], found["samples"]) == (True, 16, 64)
    assert len(found["sources"]) == 4 and {told["weight"] for told in found["shares"]} == {0.5, 0.9, 0.1, 0.2, 0.8}


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_what_a_guard_leaves_out_is_in_the_ledger(
    mixed_run: RunConfig, policy: str, disturb: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batch 7 is bad: it is step 8 (the run was saved at 5); and the run is interrupted and resumed afterwards."""
    training = dataclasses.replace(mixed_run.training, on_not_finite=policy)
    config = dataclasses.replace(mixed_run, training=training)
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, 7))
        disturb(9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not pretrain(config)
        assert pretrain(config)
    capsys.readouterr()
    assert main(["data", "audit", config.output_dir, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    left_out = {"skip": 1, "rollback": 3}[policy]
    assert found["last_step"] == 12 and found["samples"] == 4 * (12 + left_out)
    assert sum(source["skipped"] for source in found["sources"]) == 4 * left_out


# What all processes are told that amend the run.
AMENDED = "import sys; sys.argv.append('--amend')"


@pytest.mark.long
def test_law_7_over_epochs_resumes_host_counts_and_mixtures(
    mixed_run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six starts on 1, 2 and 4 hosts, the third with other weights, read what two starts on one host do: each sample of
    each source once in each of its epochs."""
    training = dataclasses.replace(mixed_run.training, max_steps=72, eval_steps=36)
    mixed = dataclasses.replace(mixed_run, training=training, mesh=MeshConfig(data=4))
    other = reweighted(mixed, 0.3, 0.7)

    def start(config: RunConfig, name: str, hosts: int, stop: int | None, amend: bool = False) -> None:
        save_config(dataclasses.replace(config, output_dir=str(tmp_path / name)), tmp_path / "config.yaml")
        first = dict.fromkeys(range(hosts), AMENDED) if amend else {}
        if stop is not None:
            first[hosts - 1] = first.get(hosts - 1, "") + stopped_in_step(stop)
        with Job(tmp_path / "config.yaml", hosts, 4 // hosts, first=first) as job:
            ends = job.ends(timeout=600)
        assert [code for code, *_ in ends] == [0 if stop is None else 143] * hosts, ends

    start(mixed, "often", 1, 9)
    start(mixed, "often", 2, 20)
    amended = load_metadata(tmp_path / "often")[1]
    start(other, "often", 4, 33, amend=True)
    start(other, "often", 2, 46)
    start(other, "often", 1, 58)
    start(other, "often", 4, None)
    start(mixed, "twice", 1, amended)
    assert load_metadata(tmp_path / "twice")[1] == amended
    start(other, "twice", 1, None, amend=True)
    assert np.allclose(losses(tmp_path / "often"), losses(tmp_path / "twice"), rtol=1e-5, atol=0)
    capsys.readouterr()
    found = {}
    for name in ("often", "twice"):
        assert main(["data", "audit", str(tmp_path / name), "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
        assert (found[name]["clean"], found[name]["last_step"], found[name]["samples"]) == (True, 72, 288)
        assert all(source["whole_epochs"] >= 3 for source in found[name]["sources"]), found[name]["sources"]
    assert (found["often"]["starts"], found["twice"]["starts"]) == (6, 2)
    assert found["often"]["process_counts"] == [1, 2, 4]
    assert found["often"]["sources"] == found["twice"]["sources"]

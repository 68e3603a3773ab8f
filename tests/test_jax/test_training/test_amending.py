"""Whole runs that go on differently, or whose batches grow: what equals what, wherever an interruption falls."""

import dataclasses
import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.amendments import read_amendments
from stellarbyte_jax.checkpoints.checkpoint import latest_step, load_metadata
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.config_file import load_run_config, save_config
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.jobs import Job
from test_jax.runs import Crash, bits, crash, losses, records
from test_jax.test_training.test_loop import as_uninterrupted

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]

GROWTH = {
    **{"initial_batch_size": 1, "batch_size_warmup_steps": 6},
    **{"initial_sequence_length": 12, "sequence_length_warmup_steps": 5},
}


def longer(run_dir: Path, output_dir: Path, **training: object) -> RunConfig:
    """The config of a copy of a finished run of twelve steps, for more of them."""
    shutil.copytree(run_dir, output_dir)
    config = load_run_config(run_dir / "config.yaml")
    training = {"max_steps": 14, "batch_size": 8, "gradient_accumulation_steps": 2} | training
    return dataclasses.replace(
        config, output_dir=str(output_dir), training=dataclasses.replace(config.training, **training)
    )


@pytest.mark.usefixtures("one_device")
def test_law_6_of_a_finished_run_that_goes_on_with_more_steps_and_larger_batches(
    finished_run: Path, tmp_path: Path, disturb: Callable
) -> None:
    """Killed before it has saved anything since, it goes on amended by the same config, without the flag."""
    whole, killed = (longer(finished_run, tmp_path / name) for name in ("whole", "killed"))
    with pytest.raises(UserError, match=r"training\.max_steps \(was 12, now 14\).*with --amend, which records it"):
        pretrain(killed)
    assert pretrain(whole, amend=True)
    disturb(13, crash)
    with pytest.raises(Crash):
        pretrain(killed, amend=True)
    assert latest_step(killed.output_dir) == 12
    assert load_run_config(tmp_path / "killed" / "config.yaml") == killed
    old = dataclasses.replace(load_run_config(finished_run / "config.yaml"), output_dir=killed.output_dir)
    with pytest.raises(UserError, match=r"it was amended after step 12 on .*, and this config is from before"):
        pretrain(old)
    assert pretrain(killed)
    assert records(killed.output_dir) == records(whole.output_dir)
    assert bits(killed.output_dir) == bits(whole.output_dir)
    assert records(whole.output_dir)[: len(records(finished_run))] == records(finished_run), "the past stays"
    assert [record["step"] for record in records(whole.output_dir) if "loss" in record] == list(range(1, 15))
    metadata, step = load_metadata(killed.output_dir)
    assert step == 14 and metadata.data_position == {"step": 14, "rows": 12 * 4 + 2 * 8, "amendments": 1}
    assert len(read_amendments(killed.output_dir)) == 1


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_more_steps_later_equal_as_many_from_the_start(run_config: MakeConfig, disturb: Callable) -> None:
    """At a rate that does not depend on the number of steps; half way, when the run was interrupted, or at its end."""
    constant = {"optimizer": {"lr_scheduler_type": "constant"}, "checkpoint": {"save_steps": 100}}
    whole = dataclasses.replace(run_config(training={"max_steps": 18}, **constant), output_dir="unset")
    config = run_config(training={"max_steps": 12}, **constant)
    whole = dataclasses.replace(whole, output_dir=config.output_dir + "-whole")
    assert pretrain(whole)
    disturb(7, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(config)
    for max_steps in (12, 15, 18):
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, max_steps=max_steps))
        assert pretrain(config, amend=True)
    assert bits(config.output_dir) == bits(whole.output_dir)
    assert losses(config.output_dir) == losses(whole.output_dir)
    assert [amendment.step for amendment in read_amendments(config.output_dir)] == [12, 15]


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_law_6_of_a_run_that_goes_on_with_other_data(
    finished_run: Path, corpus: Path, tmp_path: Path, disturb: Callable
) -> None:
    """It begins with the first row of the new data, which a step of a run from these weights shows."""
    (tmp_path / "other.jsonl").write_text("".join(reversed(corpus.open(encoding="utf-8").readlines())))
    configs = []
    for name in ("whole", "killed"):
        config = longer(finished_run, tmp_path / name, max_steps=24)
        sources = (dataclasses.replace(config.data.sources[0], path=str(tmp_path / "other.jsonl")),)
        data = dataclasses.replace(config.data, sources=sources, shards=str(tmp_path / "other"))
        configs.append(dataclasses.replace(config, data=data))
    whole, killed = configs
    prepare(whole.data, report=lambda _: None)
    assert pretrain(whole, amend=True)
    for at, amend in ((13, True), (14, False), (17, True)):
        disturb(at, crash)
        with pytest.raises(Crash):
            pretrain(killed, amend=amend)
    assert pretrain(killed)
    assert records(killed.output_dir) == records(whole.output_dir)
    assert bits(killed.output_dir) == bits(whole.output_dir)
    assert load_metadata(killed.output_dir)[0].data_position == {"step": 24, "rows": 12 * 8, "amendments": 1}

    # Without a warm-up or a decay, the first loss on the new data depends on the weights and the rows alone.
    fresh = dataclasses.replace(whole, init_from=str(finished_run), output_dir=str(tmp_path / "fresh"))
    fresh = dataclasses.replace(fresh, training=dataclasses.replace(fresh.training, max_steps=3))
    assert pretrain(fresh)
    assert losses(fresh.output_dir)[0] == pytest.approx(losses(whole.output_dir)[12], rel=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("at", [(1,), (2,), (3, 4), (5, 6), (9,)])
@pytest.mark.usefixtures("one_device")
def test_law_6_while_batches_and_rows_grow(at: tuple[int, ...], run_config: MakeConfig, disturb: Callable) -> None:
    """Interrupted at the borders of sizes, which are at 2, 3, 5 and 6 steps, and between them."""
    config = run_config(training=GROWTH, checkpoint={"save_steps": 100})
    as_uninterrupted(config, disturb, *at)
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    most = [1 * 24] * 3 + [2 * 24] * 3 + [4 * 24] * 6  # without the labels at documents' ends and padding
    train = [record for record in written if "loss" in record]
    assert all(0.5 * tokens < record["tokens"] <= tokens for record, tokens in zip(train, most, strict=True))
    assert load_metadata(config.output_dir)[0].data_position == {"step": 12, "rows": 3 * 1 + 3 * 2 + 6 * 4}


@pytest.mark.long  # In the short tier, test_feed.py has the batches of such a run.
@pytest.mark.usefixtures("one_device")
def test_law_6_at_a_new_size_which_is_compiled_once_and_not_warned_of(
    run_config: MakeConfig, disturb: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    growth = {"initial_sequence_length": 12, "sequence_length_warmup_steps": 2}
    config = run_config(training=growth | {"max_steps": 4, "eval_steps": 4, "eval_batches": 1})
    as_uninterrupted(config, disturb, 2)
    said = capsys.readouterr().out
    programs = said.count("train step compiled in") + said.count("train step read from the compile cache")
    assert programs == 2 + 1 + 1, "of the whole run, and of both parts of the other"
    assert "warning" not in said
    assert "96 tokens a step at first, in rows of 12" in said


@pytest.mark.long
def test_law_5_while_batches_and_rows_grow(run_config: MakeConfig) -> None:
    """On eight devices, which share out the rows and the tokens within them."""
    growth = GROWTH | {"initial_batch_size": 2}
    eight = run_config(training=growth, mesh={"data": 2, "context": 2, "tensor": 2})
    one = dataclasses.replace(run_config(training=growth), output_dir=eight.output_dir + "-one")
    assert pretrain(eight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert pretrain(one)
    assert np.allclose(losses(eight.output_dir)[:10], losses(one.output_dir)[:10], rtol=1e-5, atol=0)


AMEND = "import sys; sys.argv.append('--amend')"


@pytest.mark.long
def test_two_processes_amend_as_one(run_config: MakeConfig, tmp_path: Path) -> None:
    """If only one of them is to, both say so."""
    config = run_config(mesh={"data": 2}, training={"initial_batch_size": 2, "batch_size_warmup_steps": 6})
    alone = dataclasses.replace(config, mesh=run_config(mesh={"data": 1}).mesh, output_dir=config.output_dir + "-one")
    change = {"training.max_steps": 18, "training.batch_size": 8, "training.initial_batch_size": 4}
    path = tmp_path / "config.yaml"
    save_config(config, path)
    with Job(path, count=2, devices=1) as job:
        assert [code for code, *_ in job.ends(300)] == [0, 0]
    with Job(path, count=2, devices=1, overrides=change, first={1: AMEND}) as job:
        ends = job.ends(300)
    assert [code for code, *_ in ends] == [2, 2] and "--amend (True there, False in process 0)" in ends[0][2], ends
    with Job(path, count=2, devices=1, overrides=change, first={0: AMEND, 1: AMEND}) as job:
        ends = job.ends(300)
    assert [code for code, *_ in ends] == [0, 0], ends
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert pretrain(alone)
        save_config(alone, tmp_path / "alone.yaml")
        overrides = [word for name, value in change.items() for word in (f"--{name}", str(value))]
        assert pretrain(load_run_config(tmp_path / "alone.yaml", overrides), amend=True)
    assert np.allclose(losses(config.output_dir), losses(alone.output_dir), rtol=1e-4, atol=0)
    (amendment,) = read_amendments(config.output_dir)
    assert amendment.step == 12 and [*amendment.changes] == list(change)

"""What becomes of a run whose loss is not finite, or a spike: by each policy, and across interruptions."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import GuardState, checkpoint_steps, latest_step, load_metadata
from stellarbyte_jax.config import CheckpointConfig, LoRAConfig, MeshConfig, RunConfig
from stellarbyte_jax.config_file import save_config
from stellarbyte_jax.training.failures import Failures
from stellarbyte_jax.training.guard import BadStep, Guard, Reports, regular_target
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.jobs import ROOT, Job
from test_jax.poison import batches_of, poison, without
from test_jax.runs import Crash, bits, crash, losses, records
from test_jax.shards import train_loader

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]
NAN = float("nan")


def incidents(run_dir: str | Path) -> list[dict[str, Any]]:
    lines = (Path(run_dir) / "divergence.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "checkpoint"} for line in lines]


def beside(config: RunConfig, name: str, **training: Any) -> RunConfig:
    """The same run in another folder."""
    return dataclasses.replace(
        config, output_dir=f"{config.output_dir}-{name}", training=dataclasses.replace(config.training, **training)
    )


def train(config: RunConfig, *bad: int, added: float = NAN) -> None:
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, *bad), added)
        assert pretrain(config)


def train_without(config: RunConfig, *numbers: int) -> RunConfig:
    """A run that stops at any bad step and never reads these batches; its config."""
    other = beside(config, "without", on_not_finite="stop", max_skipped_in_a_row=5)
    with pytest.MonkeyPatch.context() as patch:
        without(patch, *numbers)
        assert pretrain(other)
    return other


def assert_equal(config: RunConfig, other: RunConfig) -> None:
    ours, theirs = (
        [{name: value for name, value in record.items() if name != "epoch"} for record in records(run)]
        for run in (config.output_dir, other.output_dir)
    )  # the rows that were left out count in our epochs
    assert ours == theirs
    assert bits(config.output_dir) == bits(other.output_dir)


# ----- the guard alone -----


def guard_of(config: RunConfig, step: int = 0, state: GuardState | None = None, **more: Any) -> tuple[Guard, list[int]]:
    recorded: list[int] = []
    state, rows_of = state or GuardState(), lambda step: step * config.training.batch_size
    return Guard(config, step, state, rows_of, lambda step, _: recorded.append(step), **more), recorded


def tell(guard: Guard, step: int, loss: float = 1.0, grad_norm: float = 1.0, **more: Any) -> None:
    metrics = {"loss": np.float32(loss), "grad_norm": np.float32(grad_norm), **more}
    guard.after(step, metrics, metrics)


def test_a_bad_step_is_seen_one_step_later_and_never_recorded_under_a_policy_that_goes_on(
    run_config: MakeConfig,
) -> None:
    guard, recorded = guard_of(run_config(training={"on_not_finite": "skip"}))
    tell(guard, 1)
    tell(guard, 2, grad_norm=np.inf)
    assert recorded == [1]
    with pytest.raises(BadStep, match="the gradient of step 2 is inf") as bad:
        tell(guard, 3)
    assert guard.answer(bad.value) == "skipped"
    assert (guard.rows_before(1), guard.next_round()) == (4, 1)
    guard.skip(bad.value)
    assert (guard.rows_before(1), guard.next_round()) == (8, 2)
    tell(guard, 2, loss=NAN)
    with pytest.raises(BadStep, match="the loss of step 2 is nan"):
        guard.catch_up()
    tell(guard, 2)
    guard.catch_up()
    assert recorded == [1, 2]

    stopping, recorded = guard_of(run_config())
    tell(stopping, 1)
    assert recorded == [1], "no step later where nothing can go on"


def test_so_many_in_a_row_and_no_more(run_config: MakeConfig) -> None:
    config = run_config(training={"on_not_finite": "skip", "max_skipped_in_a_row": 2})
    guard, _ = guard_of(config, state=GuardState(rows_left_out=8, skipped_in_a_row=1), step=4)
    bad = BadStep(5, "loss", {"loss": NAN, "grad_norm": NAN})
    guard.skip(bad)
    assert guard.rows_before(4) == 16 + 8 + 4
    assert guard.answer(bad) == "stopped"
    assert "and 2 batches before it were left out, the most that training.max_sk" in guard.why_stopped(bad)
    tell(guard, 5)
    guard.catch_up()
    assert guard.answer(bad) == "skipped", "an applied step begins a new row"


def test_a_rollback_leaves_out_all_up_to_the_bad_batch_until_a_regular_checkpoint_ends_the_row(
    run_config: MakeConfig,
) -> None:
    config = run_config(training={"on_not_finite": "rollback", "max_skipped_in_a_row": 2})
    guard, _ = guard_of(config, step=7)
    bad = BadStep(9, "loss", {"loss": NAN, "grad_norm": NAN})
    back = guard.rollback(bad, 5, stopping=False)
    again, _ = guard_of(config, step=5, state=GuardState(rows_left_out=4, skipped_in_a_row=1), back=back)
    assert again.rows_before(5) == guard.rows_before(9) == 36
    assert again.next_round() == guard.next_round() == 8, "a number that is left out might be the one to stop at"
    older, _ = guard_of(config, step=0, back=back)  # that of step 5 was broken
    assert older.rows_before(0) == 36

    state = dataclasses.make_dataclass("State", ["recent_losses"])(None)
    assert again.for_checkpoint(7, state) == GuardState(rows_left_out=16, rollbacks_in_a_row=1)
    assert again.for_checkpoint(10, state) == GuardState(rows_left_out=16)
    spike = BadStep(9, "is_spike", {"loss": 3.0, "grad_norm": 1.0})
    assert again.answer(spike) == "skipped"


def test_the_target_of_a_rollback_is_the_newest_that_interruptions_do_not_make(tmp_path: Path) -> None:
    config = CheckpointConfig(save_steps=5)
    assert regular_target(tmp_path, config) is None
    for step in (0, 5, 7):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    assert regular_target(tmp_path, config) == 5
    (tmp_path / "needed_by").mkdir()
    (tmp_path / "needed_by" / "7-0123456789abcdef.json").write_text("{}")
    assert regular_target(tmp_path, config) == 7


def test_reports_are_kept_once_and_told_ever_less_often(tmp_path: Path) -> None:
    for said in ([], []):  # the run, and once more
        reports = Reports(
            tmp_path, lambda first, count: {"0": [*range(first, first + count)]}, said.append, Failures(), writes=True
        )
        for step in range(1, 10):
            bad = BadStep(step, "loss", {"loss": NAN, "grad_norm": 2.0})
            where = reports.of(bad, (4 * step, 4), checkpoint=step // 5, done="skipped")
        told = [sentence.split()[4] for sentence in said]
        assert told in (["1", "2", "4", "8"], ["1"])
    written = incidents(tmp_path)
    assert [each["step"] for each in written] == [*range(1, 10)]
    assert written[0] == {
        "step": 1, "what": "loss", "loss": "nan", "grad_norm": 2.0, "samples": {"0": [4, 5, 6, 7]}, "done": "skipped"
    }  # fmt: skip
    assert where == f"{tmp_path / 'divergence.jsonl'} has its samples"


# ----- whole runs -----


@pytest.mark.usefixtures("one_device")
def test_a_run_that_skips_equals_one_without_the_batch(run_config: MakeConfig, capsys: pytest.CaptureFixture) -> None:
    config = run_config(training={"on_not_finite": "skip"}, checkpoint={"save_steps": 6})
    train(config, 6)
    said = capsys.readouterr().out
    assert_equal(config, train_without(config, 6))
    (incident,) = incidents(config.output_dir)
    assert incident["step"] == 7 and incident["done"] == "skipped" and incident["loss"] == "nan"
    loader = train_loader(config.data, 4, config.seed)
    rows = [loader._loader._streams[0][row]["input_ids"] for row in incident["samples"]["0"]]
    assert np.array_equal(rows, loader.batch(6)["input_ids"])
    assert said.count("divergence.jsonl") == 1
    assert load_metadata(config.output_dir)[0].guard == GuardState(rows_left_out=4)


@pytest.mark.usefixtures("one_device")
def test_a_run_that_rolls_back_equals_one_without_the_batches(run_config: MakeConfig) -> None:
    config = run_config(training={"on_not_finite": "rollback"})
    train(config, 6)
    assert_equal(config, train_without(config, 5, 6))
    assert [(each["step"], each["done"]) for each in incidents(config.output_dir)] == [(7, "rolled back")]


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_adapters_roll_back_with_the_weights_below(run_config: MakeConfig, finished_run: Path) -> None:
    """From step 0, since no step is saved before the bad one; the base is read again."""
    config = run_config(training={"on_not_finite": "rollback", "ema_decay": 0.9})
    config = dataclasses.replace(config, init_from=str(finished_run), lora=LoRAConfig("all-linear", r=2))
    train(config, 2)
    assert_equal(config, train_without(config, 0, 1, 2))


def interrupted(config: RunConfig, disturb: Callable, *bad: int, added: float = NAN, at: tuple[int, ...]) -> RunConfig:
    """The config of the same run, stopped by a signal, or killed at negative steps."""
    other = beside(config, "interrupted")
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, *bad), added)
        for step in at:
            disturb(abs(step), crash if step < 0 else lambda: os.kill(os.getpid(), signal.SIGTERM))
            if step < 0:
                with pytest.raises(Crash):
                    pretrain(other)
            else:
                assert not pretrain(other)
        assert pretrain(other)
    return other


@pytest.mark.long
@pytest.mark.parametrize("at", [(6,), (7,), (-7,), (3, -9), (6, 8, 10), (6, -8, 10)])
@pytest.mark.parametrize(("policy", "last"), [("skip", 10), ("rollback", 13)])
@pytest.mark.usefixtures("one_device")
def test_law_6_with_bad_steps_before_and_after(
    policy: str, last: int, at: tuple[int, ...], run_config: MakeConfig, disturb: Callable
) -> None:
    """Batches 6 and 7 are two in a row; the last one comes when the row has ended."""
    config = run_config(
        training={"on_not_finite": policy, "max_skipped_in_a_row": 2}, checkpoint={"save_total_limit": 1}
    )
    train(config, 6, 7, last)
    other = interrupted(config, disturb, 6, 7, last, at=at)
    assert_equal(config, other)
    assert incidents(config.output_dir) == incidents(other.output_dir)
    done = {"skip": "skipped", "rollback": "rolled back"}[policy]
    assert [each["done"] for each in incidents(config.output_dir)] == [done] * 3
    assert checkpoint_steps(config.output_dir) == checkpoint_steps(other.output_dir)


@pytest.mark.long
@pytest.mark.parametrize("at", [(4,), (8,), (-8, 10)])
@pytest.mark.usefixtures("one_device")
def test_law_6_with_spikes(at: tuple[int, ...], run_config: MakeConfig, disturb: Callable) -> None:
    config = run_config(training={"loss_spike_zscore": 3.0, "loss_spike_window": 4, "eval_steps": 12})
    train(config, 1, 6, 9, added=500.0)
    assert_equal(config, train_without_spikes(config))
    other = interrupted(config, disturb, 1, 6, 9, added=500.0, at=at)
    assert_equal(config, other)
    assert incidents(config.output_dir) == incidents(other.output_dir)
    assert [(each["step"], each["what"]) for each in incidents(config.output_dir)] == [
        (7, "loss spike"),
        (9, "loss spike"),
    ], "the one of step 2 comes before the window is full"


def train_without_spikes(config: RunConfig) -> RunConfig:
    other = beside(config, "without", loss_spike_zscore=None, loss_spike_window=128)
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, 1), 500.0)
        without(patch, 6, 9)
        assert pretrain(other)
    return other


@pytest.mark.long
@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.usefixtures("one_device")
def test_a_run_stops_after_so_many_in_a_row_and_may_go_on_with_a_greater_limit(
    policy: str, run_config: MakeConfig
) -> None:
    """Batches 2 to 5 are bad."""
    training = {"on_not_finite": policy, "max_skipped_in_a_row": 2, "max_steps": 4, "eval_steps": 4}
    config = run_config(training=training, checkpoint={"save_steps": 1})
    sentence = r"the loss of step 3 is nan, and (2 batches before it were left out|the run went back 2 times), the most"
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, 2, 3, 4, 5))
        for _ in range(2):  # the second one meets the same batches
            with pytest.raises(UserError, match=sentence) as stopped:
                pretrain(config)
            assert str(stopped.value).endswith("has its samples; the checkpoint of step 2 is intact")
            assert latest_step(config.output_dir) == 2
        done = [each["done"] for each in incidents(config.output_dir)]
        assert done == [{"skip": "skipped", "rollback": "rolled back"}[policy]] * 2 + ["stopped"]
        more = dataclasses.replace(config.training, max_skipped_in_a_row=4)
        assert pretrain(dataclasses.replace(config, training=more))
    assert_equal(config, train_without(beside(config, "other", max_skipped_in_a_row=4), 2, 3, 4, 5))


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_a_run_that_has_stopped_goes_on_by_another_policy(run_config: MakeConfig) -> None:
    config = run_config()
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, 6))
        with pytest.raises(UserError, match=r"leave such batches out with training\.on_not_finite skip; .*divergence"):
            pretrain(config)
    assert latest_step(config.output_dir) == 6
    changed = dataclasses.replace(config, training=dataclasses.replace(config.training, on_not_finite="skip"))
    train(changed, 6)
    assert_equal(changed, train_without(changed, 6))
    assert [each["done"] for each in incidents(config.output_dir)] == ["stopped", "skipped"]


POISON = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import pytest
from test_jax.poison import poison
poison(pytest.MonkeyPatch(), FINGERPRINTS)
"""


@pytest.mark.long
@pytest.mark.parametrize("policy", ["skip", "rollback"])
@pytest.mark.usefixtures("one_device")
def test_two_processes_decide_alike(policy: str, run_config: MakeConfig, tmp_path: Path) -> None:
    """And a signal between two bad steps is heard by both."""
    training = {"on_not_finite": policy, "max_steps": 40, "eval_steps": 20}
    config = run_config(mesh={"data": 2}, training=training, checkpoint={"save_steps": 5})
    save_config(config, tmp_path / "config.yaml")
    bad = batches_of(config, 7, 13)
    first = dict.fromkeys((0, 1), POISON.replace("FINGERPRINTS", str(bad)))
    run_dir = Path(config.output_dir)
    with Job(tmp_path / "config.yaml", count=2, devices=1, first=first) as job:
        job.until(lambda: (run_dir / "divergence.jsonl").exists() and len(losses(run_dir)) >= 9)
        job.processes[1].send_signal(signal.SIGTERM)
        ends = job.ends()
    assert [code for code, *_ in ends] in ([143, 143], [0, 0]), ends
    with Job(tmp_path / "config.yaml", count=2, devices=1, first=first) as job:
        ends = job.ends()
    assert [code for code, *_ in ends] == [0, 0], ends
    alone = dataclasses.replace(beside(config, "alone"), mesh=MeshConfig(data=1))
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, bad)
        assert pretrain(alone)
    assert np.allclose(losses(run_dir), losses(alone.output_dir), rtol=1e-5, atol=0)
    assert len(losses(run_dir)) == 40
    assert [each["samples"] for each in incidents(run_dir)] == [each["samples"] for each in incidents(alone.output_dir)]

"""Laws 5 and 6 through whole runs, and the runs that are refused."""

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
from stellarbyte.figures import figure_of
from stellarbyte.folder_lock import folder_lock
from stellarbyte.pruning.choice import Wanted
from stellarbyte.pruning.request import Request
from stellarbyte_jax.checkpoints.checkpoint import (
    Checkpointer,
    RunMetadata,
    checkpoint_steps,
    latest_step,
    load_metadata,
    load_params,
    save_imported,
)
from stellarbyte_jax.checkpoints.checksums import checksums
from stellarbyte_jax.config import MeshConfig, RunConfig
from stellarbyte_jax.config_file import load_run_config
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.pruning.prune import prune_run
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training import loop, validation
from stellarbyte_jax.training.evaluation import evaluate_run
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.runs import Crash, bits, crash, losses, records
from test_jax.shards import train_loader
from tiers import short_tier

pytestmark = pytest.mark.usefixtures("traced_once")

MakeConfig = Callable[..., RunConfig]


def as_uninterrupted(config: RunConfig, disturb: Callable, *at: int) -> RunConfig:
    """The config of the same run without the signals at these steps, once law 6 has been seen to hold for the two."""
    whole = dataclasses.replace(config, output_dir=config.output_dir + "-whole")
    assert pretrain(whole)
    for step in at:
        disturb(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not pretrain(config)
    assert pretrain(config)
    assert records(config.output_dir) == records(whole.output_dir)
    assert bits(config.output_dir) == bits(whole.output_dir)
    return whole


def config_of(run_dir: Path) -> RunConfig:
    return load_run_config(run_dir / "config.yaml")


def test_a_run_learns_and_leaves_its_papers(finished_run: Path) -> None:
    written = records(finished_run)
    assert [record["step"] for record in written if "loss" in record] == list(range(1, 13))
    assert [record["step"] for record in written if "validation_loss" in record] == [0, 6, 12]
    assert losses(finished_run)[-1] < 0.8 * losses(finished_run)[0]
    assert written[-1]["validation_loss"] < 0.8 * written[0]["validation_loss"]
    assert sorted(entry.name for entry in (finished_run / "checkpoints").iterdir()) == ["10", "12"]
    metadata, step = load_metadata(finished_run)
    assert step == 12 and metadata.data_position == {"step": 12, "rows": 48}
    assert config_of(finished_run).output_dir == str(finished_run)
    train = [record for record in written if "loss" in record]
    lines = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(figure_of(key) is not None for line in lines for key in line if key != "step"), "all are in the table"
    assert [line["tokens_seen"] for line in lines if "loss" in line] == list(
        np.cumsum([line["tokens"] for line in lines if "loss" in line])
    )
    assert [line["step"] for line in lines if "compile_seconds" in line] == [1], "the train step is compiled once"
    assert [line["step"] for line in lines if "validation_compile_seconds" in line] == [0]
    assert all(line["tflops_per_second"] > 0 for line in lines if line.get("tokens_per_second"))
    assert [round(record["learning_rate"], 6) for record in train[:3]] == [0.003333, 0.006667, 0.01]
    assert train[-1]["learning_rate"] == pytest.approx(1e-3)


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_the_manifest_is_read_once(run_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of huge shards is large; and all that a run reads of them is held against one and the same."""
    read: list[Path] = []
    load = Manifest.load
    monkeypatch.setattr(Manifest, "load", lambda folder: read.append(folder) or load(folder))
    config = run_config(training={"max_steps": 4, "eval_steps": 2})
    for work in (
        lambda: pretrain(config),
        lambda: evaluate_run(config.output_dir),
        lambda: prune_run(config.output_dir, tmp_path / "pruned", Request((0.9,), Wanted(0.9), eval_batches=1)),
        lambda: prepare(config.data, report=lambda _: None),
    ):
        read.clear()
        work()
        assert read == [Path(config.data.shards)]


@pytest.mark.usefixtures("one_device")
def test_the_papers_are_enough_to_do_it_again(finished_run: Path, tmp_path: Path) -> None:
    assert pretrain(dataclasses.replace(config_of(finished_run), output_dir=str(tmp_path / "again")))
    assert records(tmp_path / "again") == records(finished_run)
    assert bits(tmp_path / "again") == bits(finished_run)


# At 7 a checkpoint of 5 is there and a signal saves 7; at 5 the signal falls on a step that is saved anyway.
# Crashes lose what is after the last checkpoint: at 8 three steps, at 3 all. By then the second epoch has begun.
@pytest.mark.parametrize(("at", "number"), [(7, signal.SIGTERM), (5, signal.SIGINT), (8, None), (3, None)])
@pytest.mark.usefixtures("one_device")
def test_law_6_interrupted_equals_uninterrupted(
    at: int, number: int | None, run_config: MakeConfig, finished_run: Path, disturb: Callable
) -> None:
    config = run_config()
    assert len(train_loader(config.data, 4, seed=0)) <= 7 * 4
    if number is None:
        disturb(at, crash)
        with pytest.raises(Crash):
            pretrain(config)
        assert latest_step(config.output_dir) == (5 if at > 5 else None)
    else:
        disturb(at, lambda: os.kill(os.getpid(), number))
        assert not pretrain(config)
        assert latest_step(config.output_dir) == at
    assert pretrain(config)
    assert records(config.output_dir) == records(finished_run)
    assert bits(config.output_dir) == bits(finished_run)


@pytest.mark.usefixtures("one_device")
def test_the_best_and_every_sixth_stay_across_an_interruption(
    run_config: MakeConfig, disturb: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures of the first part count in the second, and those of the last step, saved before it is validated."""
    accuracies = {0: 0.1, 2: 0.3, 4: 0.9, 6: 0.2, 8: 0.5, 10: 0.4, 12: 0.8}
    evaluated = iter(accuracies.values())
    monkeypatch.setattr(
        validation,
        "evaluate",
        lambda *_: {"loss": 1.0, "accuracy": next(evaluated), "bits_per_byte": 1.0, "tokens": 1.0},
    )
    rules = {"keep_best": 2, "metric_for_best_model": "validation_accuracy", "keep_every_steps": 6}
    config = run_config(training={"eval_steps": 2}, checkpoint={"save_steps": 2, "save_total_limit": 1, **rules})
    disturb(7, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert not pretrain(config)
    assert checkpoint_steps(config.output_dir) == [2, 4, 6, 7]
    assert pretrain(config)
    assert checkpoint_steps(config.output_dir) == [4, 6, 12]


@pytest.mark.usefixtures("one_device")
def test_law_6_with_an_average_of_the_weights_which_changes_no_step(
    run_config: MakeConfig, finished_run: Path, disturb: Callable
) -> None:
    config = run_config(training={"ema_decay": 0.7, "eval_ema": True})
    whole = as_uninterrupted(config, disturb, 7)
    averages = [load_params(each.output_dir, ema=True)[0] for each in (config, whole)]
    assert checksums(averages[0]) == checksums(averages[1]) != checksums(load_params(config.output_dir)[0])
    assert losses(config.output_dir) == losses(finished_run) and bits(config.output_dir) == bits(finished_run)
    measured, step = evaluate_run(config.output_dir, ema=True)
    last = records(config.output_dir)[-1]
    assert step == 12 and last["validation_loss"] == pytest.approx(measured["loss"], rel=1e-6)
    assert last["validation_loss"] != records(finished_run)[-1]["validation_loss"]


@pytest.mark.usefixtures("one_device")
def test_a_run_is_saved_by_the_clock(run_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Checkpointer.save
    monkeypatch.setattr(Checkpointer, "save", lambda self, step, *rest: saved.append(step) or save(self, step, *rest))
    config = run_config(
        training={"max_steps": 3}, checkpoint={"save_steps": None, "save_minutes": 1e-9, "grace_seconds": None}
    )
    assert pretrain(config)
    assert saved == [1, 2, 3]


@pytest.mark.long  # the run with experts is interrupted as well, and has micro-batches
@pytest.mark.usefixtures("one_device")
def test_law_6_with_micro_batches_and_two_interruptions(run_config: MakeConfig, disturb: Callable) -> None:
    config = run_config(training={"gradient_accumulation_steps": 2})
    as_uninterrupted(config, disturb, 4, 9)


@pytest.mark.long  # The short tier saves, restores and goes on with each state alone: test_optimizer_state.py.
@pytest.mark.parametrize("optim", ["muon", "lion", "adafactor"])
@pytest.mark.usefixtures("one_device")
def test_law_6_with_other_optimizers(optim: str, run_config: MakeConfig, disturb: Callable) -> None:
    """With a factor on some rates, and restarts between the two."""
    schedule = {"lr_scheduler_type": "cosine_with_restarts", "num_cycles": 3}
    optimizer = {"optim": optim, "learning_rate_pattern": {"self_attn": 0.5}, **schedule}
    config = run_config(optimizer=optimizer, training={"eval_steps": 12})
    as_uninterrupted(config, disturb, 7)
    assert losses(config.output_dir)[-1] < 0.9 * losses(config.output_dir)[0]


@pytest.mark.long  # test_mesh.py has law 5 with experts, and test_step.py has what draws depend on
def test_laws_5_and_6_with_experts_and_all_that_is_drawn(run_config: MakeConfig, disturb: Callable) -> None:
    """Interrupted, over the same data and draws; and on eight devices, where rows lie elsewhere."""
    model = {
        "num_experts": 4, "num_shared_experts": 1, "moe_intermediate_size": 8, "moe_capacity_factor": 1.0,
        "hidden_dropout": 0.1, "attention_dropout": 0.1, "residual_dropout": 0.1, "drop_path_rate": 0.3,
    }  # fmt: skip
    config = run_config(model=model, training={"gradient_accumulation_steps": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:1]))
        whole = as_uninterrupted(config, disturb, 7)
    last = records(whole.output_dir)[-2]
    assert len(last["expert_load"]) == 4 and sum(last["expert_load"]) == pytest.approx(1)
    assert last["balance_loss"] >= 1 and last["dropped_share"] > 0

    mesh = MeshConfig(data=1, fsdp=2, tensor=4)
    spread = dataclasses.replace(config, output_dir=config.output_dir + "-spread", mesh=mesh)
    assert pretrain(spread)
    assert np.allclose(losses(spread.output_dir), losses(whole.output_dir), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("one_device")
def test_a_signal_in_the_last_step_is_too_late(run_config: MakeConfig, disturb: Callable) -> None:
    config = run_config(training={"max_steps": 3})
    disturb(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert pretrain(config)
    assert latest_step(config.output_dir) == 3


@pytest.mark.long  # test_mesh.py has law 5
def test_law_5_eight_devices_equal_one(run_config: MakeConfig, finished_run: Path) -> None:
    config = run_config(mesh={"data": 2, "fsdp": 2, "tensor": 2}, checkpoint={"save_steps": 100})
    assert pretrain(config)
    assert np.allclose(losses(config.output_dir), losses(finished_run), rtol=1e-5, atol=0)


def test_a_run_may_go_on_over_other_devices(run_config: MakeConfig, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    config = run_config(mesh={"data": 1, "fsdp": 4, "tensor": 2})
    assert pretrain(config)
    assert np.allclose(losses(config.output_dir), losses(finished_run), rtol=1e-5, atol=0)
    assert losses(config.output_dir)[:10] == losses(finished_run)[:10]


@pytest.mark.usefixtures("one_device")
def test_a_finished_run_stays_as_it_is(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    config = dataclasses.replace(config_of(finished_run), output_dir=str(tmp_path / "run"))
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    assert pretrain(config)
    assert before == {
        path: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()
    }
    assert records(tmp_path / "run") == records(finished_run)


@pytest.mark.usefixtures("one_device")
def test_a_checkpoint_beyond_the_last_step_is_refused(finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    config = dataclasses.replace(config_of(finished_run), output_dir=str(tmp_path / "run"))
    last = config.training.max_steps
    (tmp_path / "run" / "checkpoints" / str(last + 5)).symlink_to(str(last))
    with pytest.raises(UserError, match=f"holds a checkpoint of step {last + 5}, where the run has {last} steps"):
        pretrain(config)


@pytest.mark.usefixtures("one_device")
def test_another_config_is_refused_naming_the_fields(finished_run: Path, run_config: MakeConfig) -> None:
    config = dataclasses.replace(
        run_config(optimizer={"learning_rate": 2e-2}, training={"batch_size": 2}, checkpoint={"save_steps": 3}),
        output_dir=str(finished_run),
    )
    with pytest.raises(UserError) as refused:
        pretrain(config)
    message = str(refused.value)
    assert f"{finished_run} holds a run with another config" in message
    assert "training.batch_size (was 4, now 2), optimizer.learning_rate (was 0.01, now 0.02)" in message
    assert "save_steps" not in message and "output_dir (" not in message
    assert config_of(finished_run).optimizer.learning_rate == 1e-2, "the run's own config stays"


@pytest.mark.usefixtures("one_device")
def test_another_tokenizer_is_refused(finished_run: Path, run_config: MakeConfig, corpus: Path, tmp_path: Path) -> None:
    train_tokenizer([corpus.read_text(encoding="utf-8")], 300, tmp_path / "other", report=lambda _: None)
    config = run_config(data={"tokenizer": str(tmp_path / "other")})
    with pytest.raises(UserError, match=r"data\.shards .* was made with another tokenizer than .*other"):
        pretrain(config)

    # Shards of its own do not help in a run that began with the first tokenizer, under the very same names.
    config = run_config(data={"tokenizer": str(tmp_path / "other"), "shards": str(tmp_path / "shards")})
    prepare(config.data, report=lambda _: None)
    metadata, _ = load_metadata(finished_run)
    params = load_params(finished_run)[0]
    imported = RunMetadata({"model": metadata.config["model"]}, metadata.tokenizer_files)
    save_imported(config.output_dir, params, imported)
    with pytest.raises(UserError, match="holds a run with another tokenizer than"):
        pretrain(config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"vocab_size": 256}, "vocab"),
        ({"bos_token_id": 3}, r"model\.bos_token_id 3 is not the tokenizer's 0: set it to 0"),
    ],
)
@pytest.mark.usefixtures("one_device")
def test_a_model_that_does_not_fit_the_tokenizer_is_refused(
    model: dict[str, int], message: str, run_config: MakeConfig
) -> None:
    config = run_config(model=model)
    with pytest.raises(UserError, match=message):
        pretrain(config)
    assert not Path(config.output_dir).exists()


@pytest.mark.usefixtures("one_device")
def test_an_imported_model_starts_a_run(run_config: MakeConfig, finished_run: Path) -> None:
    config = run_config(training={"max_steps": 2}, optimizer={"warmup_steps": 0, "learning_rate": 1e-4})
    params, metadata, _ = load_params(finished_run)
    save_imported(config.output_dir, params, RunMetadata({"model": metadata.config["model"]}, metadata.tokenizer_files))
    assert pretrain(config)
    first = records(config.output_dir)[0]
    assert first["step"] == 0
    assert first["validation_loss"] == pytest.approx(records(finished_run)[-1]["validation_loss"], rel=1e-6)
    other_model = dataclasses.replace(config.model, rope_theta=500.0)
    with pytest.raises(UserError, match=r"model\.rope_theta \(was 10000.0, now 500.0\)"):
        pretrain(dataclasses.replace(config, model=other_model))


@pytest.mark.parametrize("save_steps", short_tier([1, 4], 1))
@pytest.mark.usefixtures("one_device")
def test_a_run_that_explodes_ends_at_once_with_its_last_good_step_saved(
    save_steps: int, run_config: MakeConfig
) -> None:
    """At this rate step 1 throws the parameters far out, and step 2 has a loss, but no gradient any more."""
    config = run_config(optimizer={"learning_rate": 1e9}, checkpoint={"save_steps": save_steps})
    with pytest.raises(UserError, match=r"lower optimizer\.learning_rate or raise optimizer\.warmup_steps") as refused:
        pretrain(config)
    assert "the gradient of step 2 is nan" in str(refused.value)
    file = Path(config.output_dir) / "divergence.jsonl"
    assert str(refused.value).endswith(f"; {file} has its samples; the checkpoint of step 1 is intact")
    incident = json.loads(file.read_text(encoding="utf-8"))
    assert (incident["step"], incident["what"], incident["checkpoint"], incident["done"]) == (
        2,
        "gradient",
        1,
        "stopped",
    )
    params, _, step = load_params(config.output_dir)
    assert step == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    written = records(config.output_dir)
    assert max(record["step"] for record in written) <= 3, "it is noticed when the next step is under way"
    assert "NaN" not in (Path(config.output_dir) / "metrics.jsonl").read_text(encoding="utf-8")


@pytest.mark.usefixtures("one_device")
def test_seeds_differ(run_config: MakeConfig, finished_run: Path) -> None:
    config = run_config(seed=1, training={"max_steps": 3})
    assert pretrain(config)
    assert not set(losses(config.output_dir)) & set(losses(finished_run)[:3])


def test_a_second_training_in_one_folder_is_refused(run_config: MakeConfig) -> None:
    config = run_config()
    refused = pytest.raises(UserError, match=rf"is being written by process {os.getpid()} on .*\(pretrain since")
    with folder_lock(config.output_dir, doing="pretrain"), refused:
        pretrain(config)
    assert not Path(config.output_dir).exists()

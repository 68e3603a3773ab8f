"""Whole runs that prune while they train, and go on with a smaller model."""

import dataclasses
import os
import signal
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.info import info
from stellarbyte_jax.checkpoints.checkpoint import load_metadata, load_params
from stellarbyte_jax.config import PruneConfig, RunConfig
from stellarbyte_jax.config_file import load_run_config, model_config_from_dict
from stellarbyte_jax.sharding import make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training.evaluation import evaluate_run
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.poison import batches_of, poison, without
from test_jax.runs import bits, losses, records

pytestmark = pytest.mark.usefixtures("traced_once")

PRUNE = PruneConfig(from_step=2, to_step=8, every_steps=2, keep_channels=0.5, keep_heads=0.75, multiple=4)
TRAINING = {"prune": PRUNE, "ema_decay": 0.9}


@pytest.fixture
def pruned_run(run_config: Callable[..., RunConfig], one_device: None) -> RunConfig:  # noqa: ARG001
    """A run that is done."""
    config = run_config(training=TRAINING)
    assert pretrain(config)
    return config


def elsewhere(config: RunConfig, name: str) -> RunConfig:
    return dataclasses.replace(config, output_dir=f"{config.output_dir}-{name}")


@pytest.mark.usefixtures("one_device")
def test_law_6_of_a_run_that_prunes(pruned_run: RunConfig, disturb: Callable) -> None:
    """Interrupted within the schedule, by the very step after which the model is cut, and after that."""
    interrupted = elsewhere(pruned_run, "interrupted")
    for step in (5, 8, 10):
        disturb(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert not pretrain(interrupted)
    assert pretrain(interrupted)
    assert records(pruned_run.output_dir) == records(interrupted.output_dir)
    assert bits(pruned_run.output_dir) == bits(interrupted.output_dir)
    both = [load_params(run.output_dir, ema=True)[0] for run in (pruned_run, interrupted)]
    assert jax.tree.all(jax.tree.map(np.array_equal, *both))


def test_a_run_goes_on_with_a_smaller_model(
    pruned_run: RunConfig,
) -> None:
    run = Path(pruned_run.output_dir)
    shares = {record["step"]: record.get("kept_channels") for record in records(run) if "loss" in record}
    assert shares[2] == 1 > shares[4] and shares[8] == pytest.approx(0.5, abs=0.1) and shares[9] is None

    params, metadata, step = load_params(run)
    model, given = metadata.model, pruned_run.model
    widths = model["intermediate_size"]
    widths = [widths] * 2 if isinstance(widths, int) else widths
    assert step == 12 and sum(widths) == round(shares[8] * 48)
    assert sum(map(len, model["pruned_heads"])) == 2
    assert params["model"]["layers"]["mlp"]["up_proj"]["kernel"].shape == (2, 16, max(widths))
    assert metadata.uncut == {"intermediate_size": given.intermediate_size, "pruned_heads": None}

    validated = [record["validation_loss"] for record in records(run) if "validation_loss" in record]
    assert evaluate_run(run)[0]["loss"] == pytest.approx(validated[-1], rel=1e-5)
    assert "pruned" in str(info(run)["model"])

    assert load_run_config(run / "config.yaml") == pruned_run, "by which the run goes on"
    longer = dataclasses.replace(pruned_run, training=dataclasses.replace(pruned_run.training, max_steps=14))
    assert pretrain(longer, amend=True)
    assert len(losses(run)) == 14 and load_metadata(run)[0].model == model

    more = dataclasses.replace(PRUNE, keep_channels=0.75)
    other = dataclasses.replace(longer, training=dataclasses.replace(longer.training, prune=more))
    with pytest.raises(UserError, match=r"training.prune.keep_channels \(was 0.5, now 0.75\).*cannot change, because"):
        pretrain(other, amend=True)

    text = (run / "config.yaml").read_text(encoding="utf-8")
    (run.parent / "next.yaml").write_text(text[: text.index("model:")] + text[text.index("data:") :], encoding="utf-8")
    changes = ["--init_from", str(run), "--output_dir", f"{run}-next", "--training.prune", "null"]
    assert load_run_config(run.parent / "next.yaml", changes).model == model_config_from_dict(model, "the run")


@pytest.mark.long
def test_laws_5_and_8_of_a_run_that_prunes(
    pruned_run: RunConfig, run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In micro-batches, rematerialised; and on eight devices."""
    for name, sections in {
        "parts": {"training": TRAINING | {"gradient_accumulation_steps": 2, "remat": "full"}},
        "spread": {"training": TRAINING, "mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
    }.items():
        if "mesh" in sections:
            monkeypatch.setattr(loop, "make_mesh", make_mesh)
        other = elsewhere(run_config(**sections), name)
        assert pretrain(other)
        assert load_metadata(other.output_dir)[0].model == load_metadata(pruned_run.output_dir)[0].model
        assert np.allclose(losses(other.output_dir), losses(pruned_run.output_dir), rtol=1e-5, atol=0), name


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_a_bad_step_prunes_nothing(run_config: Callable[..., RunConfig]) -> None:
    """Neither one within the schedule nor that after which the model is cut: their batches are left out."""
    config = run_config(training=TRAINING | {"on_not_finite": "skip"})
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, 3, 8))
        assert pretrain(config)
    other = elsewhere(config, "without")
    with pytest.MonkeyPatch.context() as patch:
        without(patch, 3, 8)
        assert pretrain(other)
    assert losses(config.output_dir) == losses(other.output_dir)
    assert bits(config.output_dir) == bits(other.output_dir)


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
def test_a_rollback_to_before_the_cut(run_config: Callable[..., RunConfig]) -> None:
    """From the checkpoint of step 5 the run prunes and cuts once more."""
    config = run_config(training=TRAINING | {"on_not_finite": "rollback"})
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, batches_of(config, 8))
        assert pretrain(config)
    assert load_metadata(config.output_dir)[0].uncut is not None and len(losses(config.output_dir)) == 12


def test_a_mesh_that_would_not_divide_what_is_left(run_config: Callable[..., RunConfig]) -> None:
    prune = dataclasses.replace(PRUNE, multiple=2)
    config = run_config(training={"prune": prune}, mesh={"data": 2, "tensor": 4})
    with pytest.raises(UserError, match=r"training.prune.multiple 2 is no multiple of mesh.tensor 4, .* set 4"):
        pretrain(config)

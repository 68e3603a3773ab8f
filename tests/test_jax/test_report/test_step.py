"""Computes steps of runs again: the numbers are those that training had."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.report.measurements import StepStatistics, TensorStatistics
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, save_imported
from stellarbyte_jax.config import LoRAConfig, RunConfig
from stellarbyte_jax.distill_config import DistillConfig
from stellarbyte_jax.report import run_step
from stellarbyte_jax.report.run_step import find_step
from stellarbyte_jax.report.step import step_statistics
from stellarbyte_jax.training.pretrain import pretrain
from test_jax.poison import batches_of, poison
from tiers import short_tier


def recorded(run_dir: Path, step: int) -> dict[str, Any]:
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    found: dict[str, Any] = next(line for line in lines if line["step"] == step and "loss" in line)
    return found


def of(found: StepStatistics, kind: str, name: str) -> TensorStatistics:
    (one,) = [each for each in found.tensors if (each.kind, each.name) == (kind, name)]
    return one


def check_is_as_it_was(found: StepStatistics, run_dir: Path, step: int) -> None:
    then = recorded(run_dir, step)
    assert found.loss == pytest.approx(then["loss"], rel=1e-6)
    assert found.grad_norm == pytest.approx(then["grad_norm"], rel=1e-5)
    assert (found.step, found.batch_tokens) == (step, then["tokens"])


def test_a_step_right_after_a_checkpoint_is_as_it_was(finished_run: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    found = step_statistics(finished_run, 11)
    check_is_as_it_was(found, finished_run, 11)
    assert (found.checkpoint, found.samples, found.remark) == (10, tuple(range(40, 44)), None)
    assert found.first_not_finite is None
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == files

    forward = [each.name for each in found.tensors if each.kind == "activation"]
    assert forward[0] == "model.embed_tokens"
    assert forward[-1] == "model.norm"
    assert forward.index("model.layers.0.mlp.down_proj") < forward.index("model.layers.0")
    assert [each.name for each in found.tensors if each.kind == "activation_gradient"] == forward[::-1]
    assert of(found, "activation", "model.layers.1").layer == 1
    norm = of(found, "activation", "model.norm")
    scale = of(found, "parameter", "model.norm.weight")
    assert norm.rms == pytest.approx(scale.rms, rel=0.2)  # it makes a root mean square of 1 of everything
    squares = sum(
        each.rms**2 * size
        for each in found.tensors
        if each.kind == "gradient"
        for size in [_size(finished_run, each.name)]
    )
    assert math.sqrt(squares) == pytest.approx(found.grad_norm, rel=1e-5)


def _size(run_dir: Path, name: str) -> int:
    from stellarbyte_jax.report.weights import weight_arrays

    return weight_arrays(run_dir)[0][name].size


def test_a_step_further_on_has_the_newest_weights_before_it(finished_run: Path) -> None:
    found = find_step(finished_run, 12)
    assert (found.checkpoint, sorted(found.batch.samples)) == (10, list(range(44, 48)))
    assert found.remarks == ("the weights are those after step 10, of the newest checkpoint from before step 12",)
    assert int((found.batch["labels"] != -100).sum()) == recorded(finished_run, 12)["tokens"]


@pytest.mark.long
@pytest.mark.usefixtures("one_device", "traced_once")
def test_the_first_step_has_the_weights_that_are_drawn(run_config: Callable[..., RunConfig]) -> None:
    config = run_config(training={"max_steps": 4}, checkpoint={"save_steps": 10})
    assert pretrain(config)
    found = step_statistics(Path(config.output_dir), 1)
    check_is_as_it_was(found, Path(config.output_dir), 1)
    assert found.checkpoint == 0


SECTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "micro-batches and dropout": {
        "training": {"gradient_accumulation_steps": 2},
        "model": {"residual_dropout": 0.2, "hidden_dropout": 0.1, "drop_path_rate": 0.3},
    },
    "experts": {"model": {"num_experts": 4, "moe_intermediate_size": 8, "num_shared_experts": 1}},
    "deepnorm": {"model": {"residual": "deepnorm", "qk_norm": True}, "training": {"label_smoothing_factor": 0.1}},
    "parallel": {"model": {"parallel_residual": True, "layer_scale_init": 0.5, "tie_word_embeddings": True}},
    "growing rows": {
        "training": {"initial_batch_size": 2, "batch_size_warmup_steps": 6, "position_shift": 3, "z_loss_coef": 1e-3}
    },
}


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("name", short_tier([*SECTIONS]))
def test_every_kind_of_run(name: str, run_config: Callable[..., RunConfig]) -> None:
    config = run_config(**SECTIONS[name])
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, max_steps=7))
    assert pretrain(config)
    check_is_as_it_was(step_statistics(Path(config.output_dir), 6), Path(config.output_dir), 6)


@pytest.mark.long
@pytest.mark.usefixtures("one_device", "traced_once")
@pytest.mark.parametrize("kind", ["adapters", "a teacher"])
def test_a_run_that_stands_on_another(kind: str, run_config: Callable[..., RunConfig], finished_run: Path) -> None:
    config = run_config(training={"max_steps": 7})
    if kind == "adapters":
        config = dataclasses.replace(
            config, init_from=str(finished_run), lora=LoRAConfig("all-linear", r=2, lora_dropout=0.3)
        )
    else:
        distill = DistillConfig(str(finished_run), None, 0.5, 2.0)
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, distill=distill))
    assert pretrain(config)
    needed = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")}
    check_is_as_it_was(step_statistics(Path(config.output_dir), 6), Path(config.output_dir), 6)
    assert {path: path.stat().st_mtime_ns for path in finished_run.rglob("*")} == needed


@pytest.mark.long
@pytest.mark.usefixtures("one_device", "traced_once")
def test_batches_that_were_left_out_are_not_counted(
    run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 6 is bad: step 7 is done with batch 7, and step 8 with batch 8; the batch that was bad is step 7's."""
    config = run_config(training={"on_not_finite": "skip"}, checkpoint={"save_total_limit": 9})
    with monkeypatch.context() as patch:
        poison(patch, batches_of(config, 6))
        assert pretrain(config)
    run_dir = Path(config.output_dir)
    assert step_statistics(run_dir, 7).samples == tuple(range(24, 28))
    found = step_statistics(run_dir, 8)
    assert found.samples == tuple(range(32, 36))
    check_is_as_it_was(step_statistics(run_dir, 11), run_dir, 11)


@pytest.mark.parametrize(
    ("path", "value", "name"),
    short_tier(
        [
            (("model", "layers", "self_attn", "q_proj", "kernel"), np.nan, "model.layers.1.self_attn.q_proj.weight"),
            (("model", "layers", "mlp", "up_proj", "kernel"), 3e38, "model.layers.1.mlp.up_proj"),
        ],
        1,
    ),
)
def test_the_first_that_is_not_finite(
    path: tuple[str, ...], value: float, name: str, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight that is NaN, and weights so large that what they give is infinite."""
    load = run_step.load_params

    def damaged(*arguments: Any) -> Any:
        params, metadata, step = load(*arguments)
        params = jax.tree.map(np.copy, params)
        node = params
        for key in path[:-1]:
            node = node[key]
        node[path[-1]][1] = value
        return params, metadata, step

    monkeypatch.setattr(run_step, "load_params", damaged)
    found = step_statistics(finished_run, 11)
    assert found.first_not_finite == name
    assert math.isnan(found.loss) and math.isnan(found.grad_norm)
    before = of(found, "activation", "model.layers.0")
    assert before.not_finite == 0 and math.isfinite(before.rms)
    after = of(found, "activation", "model.norm")
    assert after.not_finite > 0


def test_steps_that_there_are_not(finished_run: Path, tmp_path: Path) -> None:
    imported = tmp_path / "imported"
    save_imported(imported, {"model": {"norm": {"scale": np.ones(4, np.float32)}}}, RunMetadata({"model": {}}, {}))
    for folder, step, sentence in (
        (finished_run, 13, "--step 13 is more than training.max_steps 12"),
        (finished_run, 9, "no checkpoint .* from before step 9 is kept: name a step after 10"),
        (imported, 1, "holds an imported model, which was trained by no steps"),
        (tmp_path, 1, "is no run of pretraining, which has steps"),
    ):
        with pytest.raises(UserError, match=sentence):
            step_statistics(folder, step)

"""Distillation: its formula against torch's, and whole runs that learn from another."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from stellarbyte.errors import UserError
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.checkpoints.checkpoint import load_metadata, load_params
from stellarbyte_jax.checkpoints.imported import save_imported
from stellarbyte_jax.checkpoints.metadata import RunMetadata
from stellarbyte_jax.checkpoints.needed import needed_by
from stellarbyte_jax.config import ByteConfig, DistillConfig, MeshConfig, RunConfig
from stellarbyte_jax.config_file import save_config, to_dict
from stellarbyte_jax.model.flops import forward_flops
from stellarbyte_jax.planning.plan import make_plan
from stellarbyte_jax.planning.run_report import report_on
from stellarbyte_jax.planning.topology import parse_topology
from stellarbyte_jax.sharding import ONE_DEVICE, Layout, make_mesh
from stellarbyte_jax.training import loop
from stellarbyte_jax.training import loss as loss_module
from stellarbyte_jax.training.distillation import Distillation, TeacherOutput
from stellarbyte_jax.training.logit_loss import Regularization
from stellarbyte_jax.training.loss import token_loss
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.state import TrainState, abstract_model, init_params
from stellarbyte_jax.training.step import make_train_step
from test_jax.jobs import Job, stopped_in_step
from test_jax.runs import bits, check_law_6, losses, records
from test_jax.tiny import random_tokens, relative_error, segments, tiny_config, tiny_params

pytestmark = pytest.mark.usefixtures("traced_once")

D, TEACHER_D, V = 8, 12, 50
MakeConfig = Callable[..., RunConfig]


def arrays(seed: int = 0) -> tuple[Any, ...]:
    """A student's hidden states and head, a teacher's, which is wider and tied, and labels."""
    generator = np.random.default_rng(seed)
    shapes = (8, 24, D), (D, V), (8, 24, TEACHER_D), (V, TEACHER_D)
    floats = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    labels = generator.integers(0, V, (8, 24)).astype(np.int32)
    labels[generator.random(labels.shape) < 0.3] = IGNORED_LABEL
    return (*floats, labels)


def objective(on: Regularization, layout: Layout = ONE_DEVICE) -> Callable[..., Any]:
    def of(hidden, head, teacher_hidden, teacher_head, labels):
        teacher = TeacherOutput(teacher_hidden, teacher_head, "VD")
        sums = token_loss(hidden, head, labels, layout=layout, platform="tpu", regularization=on, teacher=teacher)
        return sums.objective, (sums.loss, sums.divergence)

    return jax.jit(jax.value_and_grad(of, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize(
    ("weight", "temperature", "smoothing", "z"),
    [pytest.param(1.0, 2.0, 0.0, 0.0, marks=pytest.mark.long), (0.3, 0.7, 0.1, 0.01)],
)
def test_the_formula_is_hintons(weight: float, temperature: float, smoothing: float, z: float) -> None:
    on = Regularization(smoothing, z, Distillation(weight, temperature))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "TOKENS_PER_CHUNK", 32)
        (value, (plain, divergence)), gradients = objective(on)(*arrays())

    hidden, head, teacher_hidden, teacher_head, labels = map(torch.from_numpy, arrays())
    hidden.requires_grad_(), head.requires_grad_()
    kept = labels.flatten() != IGNORED_LABEL
    ours, theirs = (hidden @ head).flatten(0, 1)[kept], (teacher_hidden @ teacher_head.T).flatten(0, 1)[kept]
    flat = labels.flatten()[kept].long()
    log_ours, log_theirs = (torch.log_softmax(each / temperature, -1) for each in (ours, theirs))
    apart = kl_div(log_ours, log_theirs, reduction="sum", log_target=True)
    expected = (1 - weight) * cross_entropy(ours, flat, label_smoothing=smoothing, reduction="sum")
    expected = expected + weight * temperature**2 * apart + z * ours.logsumexp(-1).square().sum()
    expected.backward()

    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    assert float(divergence) == pytest.approx(apart.item(), rel=1e-5)
    assert float(plain) == pytest.approx(cross_entropy(ours, flat, reduction="sum").item(), rel=1e-5)
    for gradient, wanted in zip(gradients, (hidden.grad, head.grad), strict=True):
        assert relative_error(gradient, wanted.numpy()) < 1e-5


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=2, fsdp=2, tensor=2), pytest.param(MeshConfig(context=4, tensor=2), marks=pytest.mark.long)],
)
def test_a_mesh_changes_nothing(mesh: MeshConfig) -> None:
    on = Regularization(0.0, 0.0, Distillation(0.5, 2.0))
    layout = Layout.of(mesh, make_mesh(mesh))
    spread, alone = (objective(on, each)(*arrays()) for each in (layout, ONE_DEVICE))
    for ours, theirs in zip(jax.tree.leaves(spread), jax.tree.leaves(alone), strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_the_gradient_is_as_large_at_any_temperature() -> None:
    """Of logits that are small beside the temperature, as Hinton et al. have it."""
    hidden, head, *rest = arrays()
    small = 0.01 * hidden, head, 0.01 * rest[0], *rest[1:]
    norms = [
        float(jnp.linalg.norm(objective(Regularization(distillation=Distillation(1.0, temperature)))(*small)[1][1]))
        for temperature in (1.0, 10.0)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)


@pytest.fixture
def taught(run_config: MakeConfig, finished_run: Path, one_device: None) -> MakeConfig:  # noqa: ARG001
    """A config that learns from the finished run."""

    def make(weight: float = 0.5, **sections: Any) -> RunConfig:
        training = {"distill": DistillConfig(str(finished_run), None, weight, 2.0)} | sections.pop("training", {})
        config = run_config(**sections, training=training)
        return dataclasses.replace(config, seed=3)

    return make


def elsewhere(config: RunConfig, name: str) -> RunConfig:
    return dataclasses.replace(config, output_dir=f"{config.output_dir}-{name}")


def test_law_6_of_a_run_that_learns_from_another(taught: MakeConfig, finished_run: Path, disturb: Callable) -> None:
    config, teacher = taught(), bits(finished_run)
    check_law_6(config, elsewhere(config, "interrupted"), disturb)

    steps = [record for record in records(config.output_dir) if "divergence" in record]
    assert len(steps) == 12 and steps[-1]["divergence"] < 0.8 * steps[0]["divergence"]
    for record in steps:
        wanted = 0.5 * record["loss"] + 0.5 * 2**2 * record["divergence"]
        assert record["objective"] == pytest.approx(wanted, rel=1e-5)
    assert bits(finished_run) == teacher, "which stays as it is"
    metadata, _ = load_metadata(config.output_dir)
    assert metadata.teacher is not None and (metadata.teacher.run_dir, metadata.teacher.step) == (str(finished_run), 12)
    assert load_params(config.output_dir)[0].keys() == load_params(finished_run)[0].keys(), "without the teacher"
    assert str(Path(config.output_dir).resolve()) in needed_by(finished_run)[12]


def test_a_student_that_is_its_teacher_learns_nothing() -> None:
    """Of packed documents: the teacher reads a batch as the student does."""
    config = tiny_config(num_hidden_layers=1)
    tokens, (positions, ids) = random_tokens(config, 1, 25), segments(9, 5, 8, padding=2)
    labels = np.where(ids > 0, tokens[:, 1:], IGNORED_LABEL)
    batch = {"input_ids": tokens[:, :-1], "labels": labels, "position_ids": positions, "segment_ids": ids}
    graphdef, params, optimizer = abstract_model(config)[0], tiny_params(config), optax.sgd(1.0)
    on = Regularization(distillation=Distillation(1.0, 1.0))
    step = jax.jit(make_train_step(graphdef, optimizer, regularization=on, teacher=graphdef))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    _, metrics = step(state, batch, None, params)
    assert abs(float(metrics["divergence"])) < 1e-6 > float(metrics["grad_norm"]) and float(metrics["loss"]) > 1


@pytest.mark.long
def test_laws_5_and_8_of_a_run_that_learns_from_another(taught: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """In micro-batches, rematerialised; on eight devices; and with packed documents in all of them."""
    alone = taught()
    assert pretrain(alone)
    for name, sections in {
        "parts": {"training": {"gradient_accumulation_steps": 2, "remat": "full"}},
        "spread": {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}},
        "context": {"mesh": {"data": 2, "context": 2, "tensor": 2}},
    }.items():
        if "mesh" in sections:
            monkeypatch.setattr(loop, "make_mesh", make_mesh)
        other = elsewhere(taught(**sections), name)
        assert pretrain(other)
        assert np.allclose(losses(other.output_dir), losses(alone.output_dir), rtol=1e-5, atol=0), name


def of_model(run: Path, model: ByteConfig, folder: Path) -> Path:
    """A run of fresh weights with another run's tokenizer."""
    metadata, _ = load_metadata(run)
    weights = jax.device_get(init_params(model, 1))
    save_imported(folder, weights, RunMetadata({"model": to_dict(model)}, metadata.tokenizer_files))
    return folder


def test_what_no_run_can_learn_from(taught: MakeConfig, finished_run: Path, tmp_path: Path) -> None:
    config = taught()

    def refused(teacher: Path | str, message: str, **changes: Any) -> None:
        distill = dataclasses.replace(config.training.distill, teacher=str(teacher), **changes)
        training = dataclasses.replace(config.training, distill=distill)
        with pytest.raises(UserError, match=message):
            pretrain(dataclasses.replace(config, training=training))

    refused(
        tmp_path / "nowhere", "training.distill.teacher .*nowhere holds no checkpoints: name the output_dir of a run"
    )
    refused(finished_run, "holds no checkpoint of training.distill.teacher_step 7, only of 10, 12", teacher_step=7)
    refused(config.output_dir, "training.distill.teacher .*/run is output_dir as well")
    larger = of_model(finished_run, dataclasses.replace(config.model, vocab_size=400), tmp_path / "larger")
    refused(larger, "larger has a vocabulary of 400, and model.vocab_size is 320: a teacher and its student share one")
    shorter = of_model(
        finished_run, dataclasses.replace(config.model, max_position_embeddings=16), tmp_path / "shorter"
    )
    refused(shorter, "shorter has 16 positions, fewer than data.sequence_length 24")
    files = dict(load_metadata(finished_run)[0].tokenizer_files)
    spelled = json.loads(files["tokenizer.json"])
    spelled["model"]["merges"] = spelled["model"]["merges"][:-1]
    spelled["model"]["vocab"] = {word: i for word, i in spelled["model"]["vocab"].items() if i < 319}
    metadata = RunMetadata({"model": to_dict(config.model)}, files | {"tokenizer.json": json.dumps(spelled)})
    save_imported(tmp_path / "other", jax.device_get(init_params(config.model, 1)), metadata)
    refused(tmp_path / "other", "other has another tokenizer than data.tokenizer")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight": 0.0}, r"training.distill.weight 0.0 must be in \(0, 1\], such as 0.5"),
        ({"weight": float("nan")}, "training.distill.weight nan must be a finite number"),
        ({"temperature": 1e-9}, "training.distill.temperature 1e-09 must be at least 0.01 and at most 100"),
        ({"teacher": ""}, "training.distill.teacher is empty"),
        ({"teacher_step": -1}, "training.distill.teacher_step -1 must be at least 0 or null"),
    ],
)
def test_fields_out_of_bounds(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistillConfig(**{"teacher": "runs/large", **fields})


def test_a_run_goes_on_with_its_teacher_alone(taught: MakeConfig, finished_run: Path, tmp_path: Path) -> None:
    config = taught()
    assert pretrain(config)

    def with_teacher(folder: Path, steps: int, **changes: Any) -> RunConfig:
        distill = dataclasses.replace(config.training.distill, teacher=str(folder), **changes)
        training = dataclasses.replace(config.training, distill=distill, max_steps=steps)
        return dataclasses.replace(config, training=training)

    other = of_model(finished_run, config.model, tmp_path / "other")
    with pytest.raises(UserError, match="holds no checkpoint of step 12, from which this run learns, only of 0"):
        pretrain(with_teacher(other, 12))
    shutil.move(other / "checkpoints" / "0", other / "checkpoints" / "12")
    with pytest.raises(UserError, match="other has other weights there: name the run's own teacher"):
        pretrain(with_teacher(other, 12))
    with pytest.raises(UserError, match=r"training.distill.weight \(was 0.5, now 0.9\)"):
        pretrain(with_teacher(finished_run, 12, weight=0.9))
    moved = shutil.copytree(finished_run, tmp_path / "moved")
    assert pretrain(with_teacher(moved, 12)), "wherever it is"
    teacher = load_metadata(config.output_dir)[0].teacher
    assert teacher is not None and teacher.step == 12


def test_a_plan_counts_the_teacher(taught: MakeConfig, finished_run: Path) -> None:
    """Its weights lie as the run's own; it takes one forward pass, and its logits stand beside the student's."""
    config = dataclasses.replace(taught(), mesh=MeshConfig(data=1, fsdp=2))
    alone = dataclasses.replace(config, training=dataclasses.replace(config.training, distill=None))
    learning, without = (make_plan(each, parse_topology("h100:2x1")) for each in (config, alone))
    assert learning.memory.teacher == without.memory.parameters > 0 == without.memory.teacher
    assert learning.parameters == without.parameters
    assert learning.memory.arguments == without.memory.arguments + learning.memory.teacher
    forward = forward_flops(config.model, config.training.batch_size, config.data.sequence_length)
    assert learning.flops.model == without.flops.model + forward
    assert learning.flops.executed == without.flops.executed + forward
    facts = report_on(config).report["run"]
    assert facts["teacher"] == str(finished_run) and "warnings" not in facts
    distill = dataclasses.replace(config.training.distill, teacher="nowhere")
    lost = dataclasses.replace(config, training=dataclasses.replace(config.training, distill=distill))
    assert "nowhere holds no checkpoints" in report_on(lost).report["run"]["warnings"][0]


@pytest.mark.long
def test_two_processes_learn_what_one_does(taught: MakeConfig, tmp_path: Path) -> None:
    """Law 5: of four devices each, the teacher spread among them; they are stopped on the way, and go on."""
    config = dataclasses.replace(taught(), mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    assert pretrain(dataclasses.replace(config, mesh=MeshConfig(data=1)))
    save_config(elsewhere(config, "two"), tmp_path / "config.yaml")
    for first, code in (({1: stopped_in_step(7)}, 143), ({}, 0)):
        with Job(tmp_path / "config.yaml", 2, 4, first=first) as job:
            ends = job.ends(timeout=600)
        assert [found for found, *_ in ends] == [code] * 2, ends
    assert np.allclose(losses(f"{config.output_dir}-two"), losses(config.output_dir), rtol=1e-5, atol=0)

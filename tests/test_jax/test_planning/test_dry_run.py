import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.config.dry_run import DryRun
from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig, SourceConfig
from stellarbyte_jax.config_file import run_config_from_dict, save_config
from stellarbyte_jax.data import making
from stellarbyte_jax.data import prepare as preparing
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.planning.dry_run import dry_run

HIDDEN, FEED_FORWARD, HEAD, LAYERS, VOCABULARY = 16, 24, 4, 2, 320


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., DryRun]:
    """A dry run of a config, which must leave the disk as it is."""

    def run(config: RunConfig, *overrides: str) -> DryRun:
        save_config(config, tmp_path / "run.yaml")
        before = sorted(tmp_path.rglob("*"))
        found = dry_run(tmp_path / "run.yaml", overrides)
        assert sorted(tmp_path.rglob("*")) == before
        json.dumps(found.to_dict())
        assert found.text()
        return found

    return run


def report(found: DryRun, section: str) -> dict[str, Any]:
    return dict(found.report[section])


def test_a_run_that_may_begin(check, run_config, small_data):
    config = run_config(mesh={"data": 2, "fsdp": -1}, training={"batch_size": 8})
    found = check(config)
    resolved = run_config_from_dict(found.config, "here")
    assert resolved == dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=4))

    data, counts = report(found, "data"), Manifest.load(Path(small_data.shards)).splits
    source = Path(small_data.sources[0].path)
    assert data["sources"] == [{"path": str(source), "files": 1, "bytes": source.stat().st_size}]
    assert data["shards"] == {
        **{"folder": small_data.shards, "state": "complete", "of_these_sources": True},
        **{f"{split}_documents": counts[split].documents for split in counts},
        **{f"{split}_tokens": counts[split].tokens for split in counts},
    }
    tokenizer = {"folder": small_data.tokenizer, "vocabulary": VOCABULARY, "fits_the_model": True}
    assert report(found, "tokenizer") == tokenizer
    mesh = {"devices": 8, "platform": "cpu", "axes": "data=2 fsdp=4 expert=1 context=1 tensor=1"}
    assert report(found, "mesh") == mesh
    run = {"output_dir": config.output_dir, "checkpoints": [], "would": "start from fresh weights"}
    assert report(found, "run") == run
    assert not any("warnings" in facts for facts in found.report.values())


def test_tasks_that_validations_ask(check, run_config, tmp_path):
    question = {"context": "a", "choices": ["x", "y"], "answer": 0}
    (tmp_path / "quiz.jsonl").write_text(json.dumps(question) + "\n" + json.dumps(question))
    found = check(run_config(training={"eval_tasks": (str(tmp_path / "quiz.jsonl"),)}))
    assert report(found, "tasks") == {"quiz": "2 questions"}
    found = check(run_config(training={"eval_tasks": ("nowhere.jsonl",)}))
    assert "the task nowhere.jsonl is no file" in report(found, "tasks")["warnings"][0]
    assert "tasks" not in check(run_config()).report


def test_shapes(check, run_config):
    found = check(run_config(training={"batch_size": 16, "gradient_accumulation_steps": 2}, mesh={"data": -1}))
    shapes = report(found, "shapes")
    assert shapes["parameters"] == sum(shapes["of_these"].values())
    assert shapes["of_these"] == {
        "embeddings": VOCABULARY * HIDDEN,
        "attention": LAYERS * (2 * HIDDEN * 4 * HEAD + 2 * HIDDEN * 2 * HEAD),
        "feed-forward": LAYERS * 3 * HIDDEN * FEED_FORWARD,
        "head": VOCABULARY * HIDDEN,
        "norms and gains": (2 * LAYERS + 1) * HIDDEN,
    }
    assert (shapes["rows_a_step"], shapes["rows_a_device_and_step"]) == (16, 2)
    assert (shapes["tokens_a_step"], shapes["tokens_in_all_steps"]) == (16 * 24, 12 * 16 * 24)
    train_tokens = report(found, "data")["shards"]["train_tokens"]
    assert shapes["epochs"] == pytest.approx(12 * 16 * 24 / train_tokens)


def test_experts_and_adapters_are_parts(check, run_config):
    lora = ["--lora.target_modules", "[q_proj]", "--lora.r", "2", "--init_from", "nowhere"]
    found = check(run_config(model={"num_experts": 4, "moe_intermediate_size": 8}), *lora)
    shapes = report(found, "shapes")
    parts, an_expert = shapes["of_these"], 3 * HIDDEN * 8
    assert (parts["experts"], parts["router"]) == (LAYERS * 4 * an_expert, LAYERS * HIDDEN * 4)
    assert parts["adapters"] == shapes["trained_parameters"] == LAYERS * 2 * (HIDDEN + 4 * HEAD)
    assert shapes["parameters"] - shapes["parameters_a_token"] == LAYERS * 2 * an_expert
    run = report(found, "run")
    assert run["would"] == "start from the weights of nowhere"
    assert "init_from nowhere" in run["warnings"][0]


def test_nothing_is_there_yet(check, run_config, tmp_path):
    there = {"tokenizer": str(tmp_path / "t"), "shards": str(tmp_path / "s")}
    found = check(run_config(data={**there, "sources": (SourceConfig(str(tmp_path / "x.jsonl")),)}))
    data = report(found, "data")
    assert data["sources"] == [{"path": str(tmp_path / "x.jsonl"), "files": 0, "bytes": 0}]
    assert data["shards"] == {"folder": there["shards"], "state": "absent: `stellarbyte prepare` makes them"}
    assert "x.jsonl does not exist" in data["warnings"][0]
    assert report(found, "tokenizer")["state"] == "absent: `stellarbyte tokenizer train` makes it"
    assert "epochs" not in report(found, "shapes")


def test_shards_that_are_unfinished(check, run_config, tmp_path, small_data, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    data = dataclasses.replace(small_data, shards=str(tmp_path / "shards"))
    monkeypatch.setattr(making, "_check_unchanged", interrupt)
    with pytest.raises(KeyboardInterrupt):
        preparing.prepare(data, report=lambda _: None)
    shards = report(check(run_config(data={"shards": data.shards})), "data")["shards"]
    assert shards["state"] == "unfinished: `stellarbyte prepare` goes on with them"
    assert shards["tokens"] > 100


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"validation_fraction": 0.3}, "data.validation_fraction is 0.3, but data.shards"),
        ({"tokens_per_shard": 99}, "data.tokens_per_shard is 99, but data.shards"),
    ],
)
def test_shards_of_something_else_are_a_warning(change, complaint, check, run_config):
    data = report(check(run_config(data=change)), "data")
    assert not data["shards"]["of_these_sources"]
    assert complaint in data["warnings"][0]


def test_sources_that_grew_are_a_warning(check, run_config, tmp_path, small_data):
    copy = tmp_path / "corpus.jsonl"
    shutil.copy(small_data.sources[0].path, copy)  # another path, and another time
    sources = (SourceConfig(str(copy)),)
    assert report(check(run_config(data={"sources": sources})), "data")["shards"]["of_these_sources"]
    with copy.open("a") as file:
        file.write('{"text": "more"}\n')
    data = report(check(run_config(data={"sources": sources})), "data")
    assert not data["shards"]["of_these_sources"]
    assert f"data.sources has {copy}, but data.shards" in data["warnings"][0]


def test_damaged_shards_are_a_warning(check, run_config, tmp_path, small_data):
    shards = tmp_path / "shards"
    shutil.copytree(small_data.shards, shards)
    manifest = (shards / "manifest.json").read_text()
    (shards / "manifest.json").write_text(manifest.replace('"tokens_per_shard"', '"tokens_per_shart"'))
    data = report(check(run_config(data={"shards": str(shards)})), "data")
    assert data["shards"] == {"folder": str(shards), "state": "damaged"}
    assert "is not a manifest of this version (it is damaged" in data["warnings"][0]


def test_another_tokenizer_is_a_warning(check, run_config, tmp_path):
    train_tokenizer(["other words"], 300, tmp_path / "tokenizer", report=lambda _: None)
    found = check(run_config(data={"tokenizer": str(tmp_path / "tokenizer")}))
    assert "was made with another tokenizer than" in report(found, "data")["warnings"][0]
    assert report(found, "tokenizer")["fits_the_model"]  # it has fewer tokens


def test_a_tokenizer_that_does_not_fit_is_a_warning(check, run_config):
    tokenizer = report(check(run_config(model={"vocab_size": VOCABULARY - 1})), "tokenizer")
    assert (tokenizer["vocabulary"], tokenizer["fits_the_model"]) == (VOCABULARY, False)
    assert "319" in tokenizer["warnings"][0]


def test_chat_tells_of_its_template(check, run_config):
    found = check(run_config(data={"kind": "chat", "chat_template": "stellarbyte"}))
    assert report(found, "tokenizer")["chat_template"] == "stellarbyte"
    assert "data.kind is chat, but data.shards" in report(found, "data")["warnings"][0]
    assert report(check(run_config(data={"kind": "chat"})), "tokenizer")["chat_template"] == "its own"
    missing = report(check(run_config(data={"kind": "chat", "chat_template": "no.jinja"})), "tokenizer")
    assert "data.chat_template" in missing["warnings"][0]


def test_a_mesh_for_other_devices_is_no_mistake(check, run_config):
    found = check(run_config(training={"batch_size": 256}, mesh={"data": 32, "fsdp": 8}))
    mesh = report(found, "mesh")
    assert "needs 256 devices, but there are 8" in mesh["warnings"][0]
    assert mesh["runs_here"].startswith("no; `stellarbyte plan`")
    assert found.config["mesh"]["data"] == 32
    assert report(found, "shapes")["rows_a_device_and_step"] == 1

    found = check(run_config(mesh={"data": -1, "fsdp": 16}))
    assert "needs a multiple of 16 devices, but there are 8" in report(found, "mesh")["warnings"][0]
    assert found.config["mesh"]["data"] == -1
    assert "rows_a_device_and_step" not in report(found, "shapes")


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"training": {"batch_size": 8}, "mesh": {"data": -1, "slices": 3}}, "mesh.slices 3 divides neither"),
        ({"mesh": {"data": -1}}, "training.batch_size 4 makes micro-batches of 4 rows, which mesh.data 8"),
    ],
)
def test_a_mesh_that_follows_from_the_devices_may_fit_others(sections, complaint, check, run_config):
    mesh = report(check(run_config(**sections)), "mesh")
    assert complaint in mesh["warnings"][0]
    assert mesh["runs_here"].startswith("no")


def test_processes_bring_devices_of_their_own(check, run_config):
    words = ["--distributed.num_processes", "2", "--mesh.data", "-1", "--training.batch_size", "16"]
    found = check(run_config(), *words)
    assert report(found, "mesh")["devices"] == 16
    assert found.config["mesh"]["data"] == 16


@pytest.mark.parametrize(
    ("sections", "complaint"),
    [
        ({"mesh": {"data": 3, "fsdp": 1}}, "training.batch_size 4 makes micro-batches of 4 rows, which mesh.data 3"),
        ({"mesh": {"data": 1, "context": 5}}, "data.sequence_length 24 is not divisible by mesh.context 5"),
        ({"mesh": {"data": 1, "tensor": 3}}, "mesh.tensor 3 does not divide"),
        ({"mesh": {"data": 1, "slices": 2}}, "mesh.slices 2 divides neither"),
        ({"mesh": {"rules": {"width": ()}}}, "mesh.rules width is no logical axis"),
    ],
)
def test_what_no_devices_could_train_is_a_mistake(sections, complaint, check, run_config):
    with pytest.raises(UserError, match=complaint):
        check(run_config(**sections))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["--lora.target_modules", "[w_proj]", "--init_from", "x"], "w_proj"),
        (["--data.sources.0.template", "{"], "cannot be read"),
        (["--training.bach_size", "3"], "did you mean training.batch_size?"),
    ],
)
def test_what_the_config_has_wrong_is_a_mistake(overrides, complaint, check, run_config):
    with pytest.raises(UserError) as error:
        check(run_config(), *overrides)
    assert complaint in str(error.value)


def test_a_run_that_would_go_on_or_has_ended(check, run_config, finished_run, tmp_path):
    there = dataclasses.replace(run_config(), output_dir=str(finished_run))
    run = report(check(there), "run")
    assert run["checkpoints"] == [10, 12]
    assert run["would"] == "find that it has ended: step 12 of 12 is saved"
    assert "warnings" not in run

    shutil.copytree(finished_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    assert report(check(run_config()), "run")["would"] == "go on after step 10 of 12"
    other = report(check(run_config(training={"max_steps": 13})), "run")
    assert other["would"] == "go on after step 10 of 13"
    assert "holds a run with another config: training.max_steps (was 12, now 13)" in other["warnings"][0]

    begun = report(check(there, "--output_dir", str(tmp_path / "new"), "--init_from", str(finished_run)), "run")
    assert begun["would"] == f"start from the weights of {finished_run}, of step 12"
    assert "warnings" not in begun


def test_a_mistake_in_the_config_does_not_wait_for_jax(tmp_path):
    (tmp_path / "run.yaml").write_text("output_dir: x\n")
    code = (
        "import sys; from pathlib import Path; from stellarbyte_jax.planning.dry_run import dry_run\n"
        f"try: dry_run(Path({str(tmp_path / 'run.yaml')!r}))\n"
        "except ValueError: print('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

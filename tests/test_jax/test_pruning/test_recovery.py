"""A pruned run that is trained on by the same command, as a user would, with a teacher and with an interruption."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stellarbyte.door import main
from stellarbyte_jax.checkpoints.checkpoint import checkpoint_steps, latest_step, load_metadata
from stellarbyte_jax.config_file import load_run_config
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.training.load import load_model
from test_jax.jobs import ROOT
from test_jax.runs import losses, records

ENVIRONMENT = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
SHARES = ["--keep", "80%", "--multiple", "4", "--samples", "4", "--eval-batches", "1"]


@pytest.fixture
def recovery(finished_run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes a config of recovery on the finished run's data."""

    def write(max_steps: int = 12, **sections: object) -> Path:
        config = yaml.safe_load((finished_run / "config.yaml").read_text())
        config["training"] |= {"max_steps": max_steps, "eval_steps": max_steps}
        for name, fields in sections.items():
            config[name] = {**(config[name] or {}), **fields} if isinstance(fields, dict) else fields
        (tmp_path / "recovery.yaml").write_text(yaml.safe_dump(config))
        return tmp_path / "recovery.yaml"

    return write


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "stellarbyte", *map(str, words)]


@pytest.mark.long
def test_the_model_before_teaches_the_pruned_one(
    finished_run: Path, recovery: Callable[..., Path], tmp_path: Path
) -> None:
    config = recovery(
        training={"distill": {"teacher": "nobody", "weight": 0.7, "temperature": 2.0}}, init_from="nobody"
    )
    words = command("prune", finished_run, tmp_path / "thin", *SHARES, "--recover", config, "--distill", "--json")
    done = subprocess.run(words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cut, recovered = json.loads(done.stdout)
    assert "12 steps done" in done.stderr, "as stdout is for the report"
    assert cut["before"] == recovered["before"] and cut["after"]["parameters"] == recovered["after"]["parameters"]
    assert recovered["after"]["loss"] < cut["after"]["loss"]
    assert recovered["remark"].endswith(f"it is in {tmp_path / 'thin'}")
    metadata, step = load_metadata(tmp_path / "thin")
    assert step == 12 and metadata.teacher is not None and metadata.teacher.run_dir == str(finished_run)
    assert metadata.config["training"]["distill"]["weight"] == 0.7
    first = records(tmp_path / "thin")[1]
    assert first["objective"] == pytest.approx(0.3 * first["loss"] + 0.7 * 4 * first["divergence"], rel=1e-5)
    load_model(tmp_path / "thin")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_recovery_goes_on(
    number: signal.Signals, finished_run: Path, recovery: Callable[..., Path], tmp_path: Path
) -> None:
    thin, config = tmp_path / "thin", recovery(1500, checkpoint={"save_steps": 1500})
    words = command("prune", finished_run, thin, *SHARES, "--recover", config, "--distill")
    with subprocess.Popen(
        words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 300
        while not (thin / "metrics.jsonl").exists() or "grad_norm" not in (thin / "metrics.jsonl").read_text():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        told, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "kept: 79" in told and "layer 1   keeps" in told, "what was cut is told before the training"
    goes_on = re.search(r"holds the pruned model, and `(.*)` goes on with it", errors)
    assert goes_on is not None, errors
    saved = latest_step(thin)
    assert saved is not None and 0 < saved < 1500, "the step at which the signal came is saved"

    program, *rest = shlex.split(goes_on[1])
    assert program == "stellarbyte"
    done = subprocess.run(command(*rest), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(losses(thin)) == 1500 and max(checkpoint_steps(thin)) == 1500


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("sections", "words", "message"),
    [
        ({}, ["--recover", "nowhere.yaml"], "--recover nowhere.yaml is no file: name a config"),
        ({}, ["--distill"], "--distill is for --recover, by whose config the pruned model is trained: name one"),
        ({"training": {"batch_size": 0}}, [], "training.batch_size 0 must be at least 1"),
        (
            {"lora": {"target_modules": "all-linear"}, "init_from": "x"},
            [],
            "init_from None must name the run whose weights",
        ),
        (
            {"training": {"prune": {"from_step": 1, "to_step": 11, "keep_heads": 0.5}}},
            [],
            "has training.prune, and what is pruned is trained whole: leave that section out",
        ),
        ({"data": {"tokenizer": "nowhere"}}, [], "the tokenizer's folder nowhere has no tokenizer.json"),
        (
            {"data": {"sequence_length": 100}},
            [],
            "data.sequence_length 100 is longer than model.max_position_embeddings",
        ),
        ({"model": "configs/model/125m.yaml", "data": {"shards": "nowhere"}}, [], "nowhere"),
    ],
)
def test_a_recovery_that_cannot_be_is_refused_before_the_work(
    sections: dict[str, object],
    words: list[str],
    message: str,
    finished_run: Path,
    recovery: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = ["--recover", str(recovery(**sections))] if not words or words[0] != "--recover" else []
    config = [] if words == ["--distill"] else config
    assert main(["prune", str(finished_run), str(tmp_path / "thin"), *SHARES, *config, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "thin" / "checkpoints").exists()


@pytest.mark.usefixtures("one_device")
def test_a_recovery_on_data_of_another_tokenizer_is_refused(
    corpus: Path, finished_run: Path, recovery: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [json.loads(line)["text"] for line in corpus.read_text(encoding="utf-8").splitlines()]
    train_tokenizer(texts, 300, tmp_path / "other", report=lambda _: None)
    data = {"tokenizer": str(tmp_path / "other"), "shards": str(tmp_path / "shards")}
    config = recovery(data=data)
    prepare(load_run_config(config).data, report=lambda _: None)
    assert main(["prune", str(finished_run), str(tmp_path / "thin"), *SHARES, "--recover", str(config)]) == 2
    assert f"has another tokenizer than the run, data.tokenizer {tmp_path / 'other'}" in capsys.readouterr().err

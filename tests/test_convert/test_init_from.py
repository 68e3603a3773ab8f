"""Pretraining begins with a stock model's folder as it does with a run."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from convert import init_from
from stellarbyte.door import main
from stellarbyte_jax.config_file import load_run_config
from stock_tokenizers import llama_3
from test_convert.stock import stock_model


@pytest.fixture
def folder(tmp_path) -> Path:
    """A Llama 3 with its own tokenizer."""
    stock_model("llama", "llama3", vocab_size=640).save_pretrained(tmp_path / "llama")
    return llama_3(tmp_path / "llama")


@pytest.fixture
def config(tmp_path, folder) -> Path:
    """A run's config without a model."""
    corpus = [{"text": "the star that was a byte, and the byte that was a star " * 4}] * 60
    (tmp_path / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    data = {"sources": [{"path": str(tmp_path / "corpus.jsonl")}], "tokenizer": str(folder)}
    fields = {
        "output_dir": str(tmp_path / "run"),
        "data": {**data, "shards": str(tmp_path / "shards"), "sequence_length": 32, "validation_fraction": 0.1},
        "training": {"max_steps": 2, "batch_size": 8, "eval_steps": 2},
        "optimizer": {"learning_rate": 1e-3, "warmup_steps": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(fields))
    return tmp_path / "run.yaml"


@pytest.fixture
def imports(monkeypatch) -> list[list[str]]:
    """The commands that were started, each of which runs in this process instead."""
    started: list[list[str]] = []

    def run(words: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        assert words[:3] == [sys.executable, "-m", "stellarbyte"] and not check
        started.append(words[3:])
        return subprocess.CompletedProcess(words, main(words[3:]))

    monkeypatch.setattr(subprocess, "run", run)
    return started


def overrides(config: Path, *words: str) -> list[str]:
    options = argparse.Namespace(config=config, overrides=list(words))
    init_from.import_init_from(options)
    return options.overrides[len(words) :]


def test_a_run_is_made_of_the_folder_once(config, folder, imports) -> None:
    (first,) = overrides(config, "--init_from", str(folder))
    assert overrides(config, "--init_from", str(folder)) == [first] and len(imports) == 1
    run = load_run_config(config, [f"--init_from={folder}", first])
    assert run.model.rope_scaling is not None and run.model.rope_scaling.rope_type == "llama3"
    assert Path(str(run.init_from)).parent == Path(run.output_dir)
    os.utime(folder / "config.json", ns=(0, 0))  # other content has another time
    (second,) = overrides(config, "--init_from", str(folder))
    assert second != first and len(imports) == 2


def test_a_teachers_folder_becomes_a_run_as_well(config, folder, imports) -> None:
    both = overrides(config, "--init_from", str(folder), "--training.distill.teacher", str(folder))
    assert [word.partition("=")[0] for word in both] == ["--init_from", "--training.distill.teacher"] and len(
        imports
    ) == 2
    run = load_run_config(config, [f"--init_from={folder}", *both])
    assert run.training.distill is not None
    teacher = Path(run.training.distill.teacher)
    assert teacher.parent == Path(run.output_dir) and teacher.name.startswith("teacher-")
    assert (teacher / "checkpoints").is_dir()


def test_what_is_no_stock_folder_of_this_machine_is_left_alone(config, folder, run_dir, imports) -> None:
    assert overrides(config) == []
    assert overrides(config, f"--init_from={run_dir}") == []
    assert overrides(config, "--init_from=nothing") == []
    assert overrides(config, "--init_from=gs://bucket/llama") == []
    assert overrides(config, f"--init_from={folder}", "--distributed.coordinator_address=host:1") == []
    assert imports == []


def test_a_folder_that_is_refused_ends_the_command_with_its_sentence(config, folder, imports, capsys) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "mlp_bias": True}))
    with pytest.raises(SystemExit) as stop:
        overrides(config, f"--init_from={folder}")
    assert stop.value.code == 2 and "mlp_bias is not a field of StellarByte" in capsys.readouterr().err
    assert len(imports) == 1 and not (config.parent / "run").exists()


@pytest.mark.long
def test_a_stock_llama_is_trained_on_and_goes_out_again(config, folder, tmp_path) -> None:
    def stellarbyte(*words: object) -> str:
        command = [sys.executable, "-m", "stellarbyte", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "parameters from" in stellarbyte("prepare", config, "--init_from", folder)
    assert "parameters from" not in stellarbyte("pretrain", config, "--init_from", folder)
    stellarbyte("convert", "to-hf", tmp_path / "run", tmp_path / "hf", "--as", "llama")
    before, after = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder, tmp_path / "hf"))
    assert before.keys() == after.keys()
    changes = [float((before[key] - after[key]).abs().max()) for key in before]
    assert 0 < max(changes) < 0.1  # it went on from these weights

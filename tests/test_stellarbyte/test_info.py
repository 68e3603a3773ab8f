"""What `stellarbyte info` tells of a folder; the folders of real runs and exports are told of in tests/test_convert."""

import json
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte.info import info, info_text

MODEL = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24, "vocab_size": 99}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_an_adapter(tmp_path: Path) -> None:
    write(tmp_path / "adapter_config.json", {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "k_proj"]})
    assert info(tmp_path) == {
        "kind": "adapter",
        "peft_type": "LORA",
        "base": None,
        "r": 2,
        "lora_alpha": None,
        "target_modules": ["k_proj", "q_proj"],
        "weights": "none in safetensors files",
    }
    assert info_text(info(tmp_path)).splitlines()[2:4] == ["base            not said", "r               2"]


def test_a_run_whose_last_line_was_cut_off(tmp_path: Path) -> None:
    write(tmp_path / "config.yaml", {"model": MODEL, "training": {"max_steps": 9}, "lora": None})
    write(tmp_path / "metrics.jsonl", '{"step": 3, "loss": 2.5}\n{"step": 4, "loss": 2.')
    for name in ("2", "10", "damaged-3", "notes"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    facts = info(tmp_path)
    assert facts["kind"] == "pretraining run" and facts["checkpoints"] == [2, 10]
    assert (facts["step"], facts["loss"], facts["steps_wanted"]) == (3, 2.5, 9)
    assert facts["model"] == "2 layers of 16, 4 heads, feed-forward 24, vocabulary 99"


def test_a_run_of_fine_tuning(tmp_path: Path) -> None:
    write(tmp_path / "config.yaml", {"model": "base", "data": {"sources": [{"path": "a.jsonl"}]}})
    (tmp_path / "checkpoints" / "checkpoint-7").mkdir(parents=True)
    (tmp_path / "adapter").mkdir()
    facts = info(tmp_path)
    assert (facts["kind"], facts["base"], facts["data"]) == ("fine-tuning run", "base", ["a.jsonl"])
    assert facts["checkpoints"] == [7] and facts["result"] == [f"{tmp_path}/adapter"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "[]"),
        ("config.json", "{"),
        ("adapter_config.json", "3"),
        ("manifest.json", '{"splits": {"train": 3}, "recipe": []}'),
        ("tokenizer.json", '{"model": [], "added_tokens": {"a": 1}}'),
        ("tokenizer.json", "x"),
        ("config.yaml", "- 1"),
        ("config.yaml", "model: [1, 2]"),
    ],
)
def test_what_strangers_wrote_is_told_or_refused(name: str, content: str, tmp_path: Path) -> None:
    write(tmp_path / name, content)
    try:
        text = info_text(info(tmp_path))
    except UserError as error:
        text = str(error)
        assert "\n" not in text and name in text
    assert text


def test_what_it_is_not_for(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="is no run, model, adapter, token shards or tokenizer of ours: it holds none of"
    ):
        info(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="is a run without config"):
        info(tmp_path / "run")
    write(tmp_path / "x", "")
    with pytest.raises(UserError, match="x is a file: name a folder"):
        info(tmp_path / "x")
    with pytest.raises(UserError, match="y is not there: name a folder"):
        info(tmp_path / "y")

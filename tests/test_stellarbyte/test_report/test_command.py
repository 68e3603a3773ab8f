"""The command: what it prints, and JSON that holds the same."""

import json

import pytest

from stellarbyte.door import main
from stellarbyte.report import making
from stellarbyte.report.making import make_reports
from stellarbyte.report.text import amount, report_text, size
from test_stellarbyte.test_report.folders import LLAMA, folder, llama


@pytest.fixture
def path(tmp_path):
    """A family of which nothing but its tensors is known, so that no planner is asked."""
    return folder(tmp_path / "star", LLAMA | {"model_type": "stablelm"}, llama())


def test_lines(path, capsys):
    assert main(["report", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "star: a Hugging Face folder"
    assert "  layers 0-1  4 heads (2 for keys) of 8, rope; feed-forward 48; 7,744 parameters each" in lines
    assert any(line.startswith("parameters: 21,664") for line in lines)
    assert any("decode behind 63" in line for line in lines)
    assert "the training of model_type stablelm is not known" in lines[-1]


def test_json_is_one_object_a_model(path, tmp_path, capsys):
    other = folder(tmp_path / "byte", LLAMA | {"model_type": "stablelm"}, llama(tied=True))
    assert main(["report", str(path), str(other), "--no-weights", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["name"], second["name"]] == ["star", "byte"]
    assert first["parameters"]["total"] - second["parameters"]["total"] == 96 * 32
    (report,) = make_reports([path])
    assert first == json.loads(json.dumps(report.to_dict()))
    assert first["memory"]["cache"][0]["token"] == report.memory.cache[0].token
    assert first["measured"]["latency"] is None


def test_a_budget_is_told(path, capsys):
    assert main(["report", str(path), "--kv-budget", "50%"]) == 0
    assert "32 slots a head" in capsys.readouterr().out


def test_two_folders_of_one_name_are_told_apart(tmp_path):
    paths = [folder(tmp_path / where / "hf", LLAMA | {"model_type": "stablelm"}, llama()) for where in ("a", "b")]
    assert [report.name for report in make_reports(paths)] == ["a/hf", "b/hf"]


def test_numbers_of_no_float_are_null(path):
    (report,) = make_reports([path])
    report.flops.recomputed["full"] = float("nan")
    assert report.to_dict()["flops"]["recomputed"] == {"full": None}


@pytest.mark.long
def test_a_folder_without_weights_is_counted_by_its_config(tmp_path):
    folder(tmp_path / "m", LLAMA, llama())
    (tmp_path / "m" / "model.safetensors").unlink()
    (report,) = make_reports([tmp_path / "m"])
    assert report.parameters.total == 21_664
    assert report.memory.stored is None
    assert "holds no weights in safetensors files" in report.remarks[0]
    assert report.memory.training[0].remat == "none"
    assert "remat full" in report_text(report)


def test_without_jax_a_sentence_stands_for_what_is_not_foreseen(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(making, "find_spec", lambda _: None)
    assert main(["report", str(folder(tmp_path / "m", LLAMA, llama())), "--no-weights"]) == 0
    captured = capsys.readouterr()
    assert "pip install 'stellarbyte[jax]'" in captured.out
    assert "answers with weights in float32" in captured.out
    assert "remat" not in captured.out


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1000, "1 k"), (6.7384e9, "6.738 G"), (1e20, "1e+05 P")]
)
def test_amounts(number, text):
    assert amount(number) == text


@pytest.mark.parametrize(("nbytes", "text"), [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.50 KiB")])
def test_sizes(nbytes, text):
    assert size(nbytes) == text

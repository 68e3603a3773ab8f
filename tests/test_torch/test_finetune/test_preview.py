import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stellarbyte import door
from stellarbyte_torch.finetune.preview import preview

from ..exported import export

CHAT = [{"role": "user", "content": "the <|SEOS|> fox"}, {"role": "assistant", "content": "naïve 🚀 春\x1b[31m\ttab"}]
SHOWN = "<|SBOS|>user\nthe <|SEOS|> fox<|SEOS|><|SBOS|>assistant\n⟦naïve 🚀 春\\x1b[31m\ttab<|SEOS|>⟧\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = export(tmp_path_factory.mktemp("export"))
    (folder / "chat.jsonl").write_text("".join(json.dumps({"messages": CHAT, "id": i}) + "\n" for i in range(4)))
    return folder


def write(path: Path, folder: Path, more: str = "", model: str = "model: {}\n") -> Path:
    sources = f"data:\n  sources:\n  - path: {folder}/chat.jsonl\n  validation_fraction: 0\n"
    path.write_text(model.format(folder) + "training: {max_steps: 3}\n" + sources + more)
    return path


def test_samples_with_marks_then_a_summary(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path / "c.yaml", folder)
    assert door.main(["data", "preview", str(config), "--samples", "2"]) == 0
    text = capsys.readouterr().out
    assert text.count(SHOWN) == 2
    assert f"── sample 2, {folder}/chat.jsonl:2: " in text
    assert text.splitlines()[-1].startswith("4 records: 4 training and 0 validation samples, ")

    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert door.main(["data", "preview", str(config), "--samples", "1"]) == 0
    coloured = capsys.readouterr().out
    assert SHOWN.replace("⟦", "\x1b[32m").replace("⟧", "\x1b[0m") in coloured


@pytest.mark.long
def test_a_terminal_of_few_characters(folder: Path, tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", folder)
    command = [sys.executable, "-m", "stellarbyte", "data", "preview", str(config), "--samples", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "\\u27e6na\\xefve \\U0001f680" in result.stdout


@pytest.mark.long
def test_a_reader_that_has_gone_is_told_by_the_exit_code(folder: Path, tmp_path: Path) -> None:
    """As with `stellarbyte data preview … | head -c 0`."""
    config = write(tmp_path / "c.yaml", folder)
    command = [sys.executable, "-m", "stellarbyte", "data", "preview", str(config)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_tokenizer_of_its_own(folder: Path, tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", folder, f"  tokenizer: {folder}\n", model="")
    assert SHOWN in "".join(preview(config, 1, colour=False))


def test_overrides(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(write(tmp_path / "c.yaml", folder))
    assert door.main(["data", "preview", config, "--samples", "1", "--data.loss_on", "all"]) == 0
    assert SHOWN not in capsys.readouterr().out
    assert door.main(["data", "preview", config, "--data.loss_onn", "all"]) == 2
    assert "--data.loss_onn all: data.loss_onn is not a field; did you mean data.loss_on?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("model: x\n", "c.yaml: data is missing and must be given"),
        ("data: {sources: [{path: x}]}", "c.yaml: model must name a model's folder, or data.tokenizer a tokenizer's"),
        ("model: [x]\ndata: {sources: [{path: x}]}", "c.yaml:1: model must name a model's folder"),
        ("model: nowhere\ndata: {sources: [{path: x}]}", "the tokenizer's folder nowhere does not exist"),
        ("model: EMPTY\ndata: {sources: [{path: x}]}", "holds no tokenizer: copy the one there"),
        ("model: HERE\ndata: {sources: [{path: HERE/x.jsonl}]}", "x.jsonl does not exist: check the path"),
        (
            "model: HERE\ndata:\n  sources: [{path: x}]\n  sequence_len: 3",
            "c.yaml:4: data.sequence_len is not a field; did you mean",
        ),
        (
            "model: HERE\ndata: {sources: [{path: x}]}\ntrainig: {seed: 1}",
            "c.yaml:3: trainig is not a field of a fine-tun",
        ),
        ("model: HERE\ndata: {sources: [{path: x}]}\n'': 1", "c.yaml:3: '' is not a field of a fine-tuning config; it"),
        ("model: HERE\ndata: {sources: [{path: HERE/chat.jsonl, format: alpaca}]}", "chat.jsonl:1 lacks the field 'in"),
    ],
)
def test_mistakes_get_one_sentence(
    content: str, complaint: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "c.yaml").write_text(content.replace("HERE", str(folder)).replace("EMPTY", str(tmp_path / "empty")))
    assert door.main(["data", "preview", str(tmp_path / "c.yaml")]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("stellarbyte: error: ")
    assert complaint in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_overrides_of_what_there_is_not(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["data", "preview", str(write(tmp_path / "c.yaml", folder)), "--samples", "1", "--data.loss_on", "all"]
    assert door.main([*command, "--data.sequence_length=64", "--training.max_steps", "9"]) == 0
    assert "<|SBOS|>⟦user\n" in capsys.readouterr().out
    for words, complaint in [
        (["--data.loss_on", "users"], "--data.loss_on users: data.loss_on is 'users'"),
        (["--dta.seed", "3"], "--dta.seed 3: dta.seed is not a field of a fine-tuning config; did you mean data?"),
        (
            ["--data.sequence_len=3"],
            "--data.sequence_len=3: data.sequence_len is not a field; did you mean data.sequence_length?",
        ),
        (["--data.max_length=3"], "--data.max_length=3: data.max_length is called data.sequence_length: rename it"),
        (["--data.seed"], "--data.seed has no value: write --data.seed value"),
    ]:
        assert door.main([*command, *words]) == 2
        assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["data"], ["data", "preview", "c.yaml", "--samples", "-1"], ["data", "preview"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        door.main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1

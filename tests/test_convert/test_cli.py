import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convert import run_checkpoint
from stellarbyte.door import main
from test_convert.models import bits


def test_there_and_back_by_command(run_dir, tmp_path, capsys):
    options = ["--max-shard-size", "20KB", "--step", "0"]
    assert main(["convert", "to-hf", str(run_dir), str(tmp_path / "hf"), *options]) == 0
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "step 0, 22,012 parameters, 0.1 MB of weights" in said.out
    assert bits(run_checkpoint.load(tmp_path / "run").params) == bits(run_checkpoint.load(run_dir).params)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["to-hf", "none", "hf"], "none is not a folder: give the output_dir of a run"),
        (["to-hf", ".", "hf"], "holds no checkpoint"),
        (["to-hf", ".", "hf", "--max-shard-size", "5 bananas"], "the shard size '5 bananas'"),
        (["from-hf", "none", "run"], "none is not a folder"),
        (["from-hf", ".", "run"], "holds no config.json"),
        (["verify", ".", "none"], "none is not a folder"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(arguments, complaint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("stellarbyte: error: ")
    assert complaint in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["to-fh"], ["to-hf"], ["to-hf", "a", "b", "--dtype", "int8"]])
def test_misspelt_commands_are_one_sentence_and_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["convert", *arguments])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("shown", [["--json"], []])
def test_a_reader_that_leaves_gets_no_verdict(run_dir, exported, tmp_path, monkeypatch, shown):
    """`verify --json | head -1` must not end with the code for "different": the error goes up to `run_program`."""
    folder = shutil.copytree(exported, tmp_path / "hf")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe, write_through=True))
        with pytest.raises(BrokenPipeError):
            main(["convert", "verify", *shown, str(run_dir), str(folder)])


@pytest.mark.long
@pytest.mark.parametrize("shown", ["--json", None])
def test_a_reader_that_leaves_a_process_gets_no_verdict(run_dir, exported, tmp_path, shown):
    folder = shutil.copytree(exported, tmp_path / "hf")
    code = (
        "import convert.certificate as c\n"
        "from convert.verifying.behaviour import Behaviour\n"
        "c._behaviour = lambda *_, **__: Behaviour([])\n"
        "from stellarbyte.door import program\n"
        "program()\n"
    )
    command = [sys.executable, "-c", code, "convert", "verify", *([shown] if shown else []), str(run_dir), str(folder)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert done.returncode == 141, done.stderr
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr and "No space left on device" in done.stderr

import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from stellarbyte import door
from stellarbyte.sampling import Sampling
from stellarbyte_torch.generate import generate, load

from .exported import export

PROMPT = "The quick brown café 春"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("export"))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stellarbyte", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_prints_prompt_and_continuation_and_nothing_else(folder: Path) -> None:
    result = run("generate", folder, "--prompt", PROMPT, "--max-new-tokens", 12)
    expected = generate(*load(folder, "cpu"), PROMPT, 12).text
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == PROMPT + expected + "\n"


def test_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--prompt",
        PROMPT,
        "--max-new-tokens",
        "12",
        "--temperature",
        "0.8",
        "--top-k",
        "40",
        "--top-p",
        "0.95",
    ]
    assert door.main(["generate", str(folder), *arguments, "--seed", "7", "--device", "cpu", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert list(output) == ["prompt", "text", "prompt_tokens", "new_tokens", "tokens_per_second"]
    sampling = Sampling(temperature=0.8, top_k=40, top_p=0.95)
    assert output["text"] == generate(*load(folder, "cpu"), PROMPT, 12, sampling, seed=7).text
    assert output["prompt"] == PROMPT


def test_a_continuation_that_is_empty_still_ends_the_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stellarbyte_torch.generate.generate", lambda *_args, **_kwargs: Mock(cut_at=None))
    assert door.main(["generate", str(folder), "--prompt", PROMPT]) == 0
    assert capsys.readouterr().out == PROMPT + "\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["speak"], "invalid choice: 'speak'"),
        (["generate"], "the following arguments are required: --prompt"),
        (["generate", "HERE", "--prompt", "x", "--top-k", "many"], "argument --top-k: invalid int value: 'many'"),
        (["generate", "HERE", "--prompt", "x", "--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["generate", "HERE", "--prompt", "x", "--topk", "3"], "unrecognized arguments: --topk 3"),
        (["generate", "HERE", "--prompt", "x", "--top-p", "2"], "top_p 2.0 must be greater than 0 and at most 1"),
        (["generate", "missing", "--prompt", "x"], "missing is not there: name a folder"),
        (["generate", "HERE", "--prompt", "x", "--step", "3"], "--step is for runs, and "),
        (["generate", "HERE", "--prompt", "x" * 64], "--prompt has 65 tokens"),
        (["generate", "HERE", "--prompt", "x\udcff"], "--prompt holds bytes that are not UTF-8"),
        (["generate", "HERE", "--prompt", "x", "--device", "tpu9"], "--device tpu9 is not available here"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_mistakes_get_one_sentence_and_exit_code_2(
    folder: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = door.main([str(folder) if argument == "HERE" else argument for argument in arguments])
    except SystemExit as stop:  # argparse's own way to end
        code = stop.code
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.startswith("stellarbyte: error: ")
    assert complaint in output.err
    assert output.err.count("\n") == 1


def test_bugs_keep_their_traceback(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_args: object, **_kwargs: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("stellarbyte_torch.generate.generate", bug)
    with pytest.raises(KeyError):
        door.main(["generate", str(folder), "--prompt", "x"])

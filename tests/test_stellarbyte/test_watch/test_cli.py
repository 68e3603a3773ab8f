"""The command says what is wrong with its words, warns of other addresses, and ends by a signal without a trace."""

import signal
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from urllib.request import urlopen

import pytest

from stellarbyte import door

from .test_watched import write


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "the following arguments are required: RUN"),
        ([""], "'' names no file and no folder"),
        (["FOLDER/nowhere/run"], "is not there, nor is the folder above it"),
        (["FOLDER/file"], "is a file: name a run's folder, or a folder of runs"),
        (["FOLDER/hf"], "is a model, which does not train: name the output_dir of a run"),
        (["FOLDER/run", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["FOLDER/run", "--port", "-1"], "--port -1 is no port: give a number from 1024 to 65535, or 0 for any"),
        (["FOLDER/run", "--port", "65536"], "--port 65536 is no port"),
        (["FOLDER/run", "--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is no address"),
        (["FOLDER/run", "--host", "x" * 300], "is no address: give one of this machine"),
        (["FOLDER/run", "--host", "a..b"], "--host 'a..b' is no address"),
        (["FOLDER/run", "--host", "203.0.113.1"], "at 203.0.113.1 cannot be used"),
        (["FOLDER/run", "--host", ""], "--host '' is no address"),
        (["FOLDER/run", "--prompt="], "--prompt '' has no text to go on from"),
        (["FOLDER/run", "--prompt=-x"], "--prompt '-x' begins with a dash"),
        (["FOLDER/run", "--prompt", "\udcff"], "--prompt holds bytes that are not UTF-8"),
        (["FOLDER/run", "--lang", "de"], "argument --lang: invalid choice: 'de'"),
        (["FOLDER/run", "--opne"], "unrecognized arguments: --opne"),
        (["gs:/bucket/run"], "is no path of this machine"),
        (["s3://"], "names no bucket"),
        (["FOLDER/shards"], "is token shards, which does not train"),
    ],
)
def test_mistakes(
    words: list[str],
    complaint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("stellarbyte.watch.cli._wait_for_a_signal", lambda: pytest.fail("it serves"))
    write(tmp_path / "run", range(1, 3))
    (tmp_path / "file").write_text("")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_text("{}")
    before = set(Path(tempfile.gettempdir()).glob("stellarbyte-watch-*"))
    try:
        code: object = door.main(["watch", *(word.replace("FOLDER", str(tmp_path)) for word in words)])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2 and complaint in said and said.count("\n") == 1, said
    assert set(Path(tempfile.gettempdir()).glob("stellarbyte-watch-*")) == before


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(number: signal.Signals, code: int, tmp_path: Path) -> None:
    run = write(tmp_path / "run", range(1, 3))
    command = [sys.executable, "-m", "stellarbyte", "watch", str(run), "--port", "0", "--host", "0.0.0.0"]
    environment = {"TMPDIR": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        address = process.stdout.readline().split()[0].replace("0.0.0.0", "127.0.0.1")
        with urlopen(address) as answer:
            assert answer.status == 200
        assert list(tmp_path.glob("stellarbyte-watch-*"))
        process.send_signal(number)
        assert process.wait(10) == code
        warning, end = process.stderr.read().splitlines()
    assert warning.startswith("warning: --host 0.0.0.0 shows these runs to everybody")
    assert end.startswith("stellarbyte: interrupted")
    assert not list(tmp_path.glob("stellarbyte-watch-*")), "its folder for reports is gone"


def test_it_opens_a_browser_and_ends_by_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, opened = write(tmp_path / "run", range(1, 3)), []

    def look() -> None:
        with urlopen(f"{opened[0]}runs.json") as answer:
            assert b'"run"' in answer.read()
        raise KeyboardInterrupt

    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("stellarbyte.watch.cli._wait_for_a_signal", look)
    assert door.main(["watch", str(run), "--port", "0", "--open"]) == 130
    said = capsys.readouterr()
    assert said.out == f"{opened[0]} shows {run}; Ctrl-C ends it\n"
    assert said.err == "stellarbyte: interrupted\n"


def test_what_the_page_needs_is_part_of_the_package() -> None:
    root = Path(__file__).parents[3]
    (globs,) = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"].values()
    packaged = {path for pattern in globs for path in (root / "stellarbyte" / "watch").glob(pattern)}
    assert packaged == {
        path for path in (root / "stellarbyte" / "watch").rglob("*.*") if path.suffix not in (".py", ".pyc")
    }

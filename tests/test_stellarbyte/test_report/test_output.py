"""The files that `stellarbyte report` writes, and where it says so."""

import json
from pathlib import Path

import pytest

from stellarbyte import door
from test_stellarbyte.test_report import made


@pytest.fixture(autouse=True)
def one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stellarbyte.report.making.make_reports", lambda *_, **__: [made.unknown()])


def test_a_page_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "report.html", tmp_path / "new" / "pictures"
    words = ["report", "x.yaml", "--json", "-o", str(file), "--lang", "zh", "--png", str(folder)]
    assert door.main(words[:5]) == 0 and door.main(words) == 0
    out, told = capsys.readouterr()
    assert [json.loads(line)["name"] for line in out.splitlines()] == ["gpt2"] * 2, "what is written is told elsewhere"
    pictures = sorted(folder.iterdir())
    assert told.splitlines()[:3] == [f"{file}", f"{file} (replaced)", f"{folder}: {len(pictures)} pictures"]
    assert 'lang="zh-CN"' in file.read_text(encoding="utf-8") and [each.name for each in pictures] == [
        *("parameters.png", "training-state.png", "weights.png")
    ]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-o", "report.pdf"], "--output report.pdf has the suffix .pdf: end it in .html"),
        (["-o", "report"], "--output report has the suffix of no format: end it in .html"),
        (["-o", "FOLDER"], "FOLDER is a folder: name a file in it"),
        (["-o", "FILE/report.html"], "FILE/report.html cannot be written"),
        (["--png", "FILE"], "--png FILE is a file: name a folder, which is made where it is not there"),
        (["--png", "FILE/pictures"], "--png FILE/pictures cannot be made"),
        (["--lang", "de"], "invalid choice: 'de'"),
    ],
)
def test_mistakes(words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file").write_text("")
    places = {"FOLDER": str(tmp_path / "folder.html"), "FILE": str(tmp_path / "file")}

    def placed(text: str) -> str:
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    try:
        code = door.main(["report", "x.yaml", *map(placed, words)])
    except SystemExit as stop:  # argparse's own
        code = int(str(stop.code))
    assert code == 2
    assert placed(complaint) in capsys.readouterr().err

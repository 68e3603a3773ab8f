"""`stellarbyte memory`, as a user types it."""

import io
import json
from pathlib import Path

import pytest

from stellarbyte.door import main


def run(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> str:
    try:
        ended = main(["memory", *map(str, words)])
    except SystemExit as stop:
        ended = int(stop.code or 0)
    said = capsys.readouterr()
    assert ended == code, said.err
    if code == 2:
        assert said.err.startswith("stellarbyte: error: ") and said.err.count("\n") == 1
        return said.err
    return said.out


def test_a_memory_is_kept_by_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.db"
    assert "added 1  it is new" in run(capsys, "add", path, "My dog is called Rex", "--source", "by hand")
    monkeypatch.setattr("sys.stdin", io.StringIO("I live in Berlin\n\nMy password is hunter2\n"))
    assert run(capsys, "add", path, "-").splitlines() == ["added 2  it is new", "refused  it holds a password or a key"]
    assert "1  My dog is called Rex  (by hand)" in run(capsys, "search", path, "what is my", "dog called?")
    (line,) = run(capsys, "search", path, "dog", "--json", "--how", "words").splitlines()
    assert json.loads(line)["text"] == "My dog is called Rex" and json.loads(line)["score"] == 1
    assert "replaced 1" in run(capsys, "add", path, "Actually, my dog is called Max")
    assert "My dog is called Rex  (it says otherwise of the same)" in run(capsys, "history", path, 1)
    assert "2  I am in Munich" in run(capsys, "update", path, 2, "I am in", "Munich")
    assert [line.split()[1] for line in run(capsys, "log", path).splitlines()] == [
        "updated", "replaced", "refused", "added", "added",
    ]  # fmt: skip
    assert "2 entries are in" in run(capsys, "export", path, tmp_path / "o.jsonl")
    assert run(capsys, "import", path, tmp_path / "o.jsonl", "--user", "ann") == "2 added, 0 there already\n"
    assert [line.split() for line in run(capsys, "users", path).splitlines()] == [
        ["2", "(without", "name)"],
        ["2", "ann"],
    ]
    assert run(capsys, "audit", path) == "2 entries: 0 junk, 0 duplicates, 0 ghosts\n"
    assert "capacity        5" in run(capsys, "settings", path, "--capacity", 5, "--retention-days", 30)
    assert json.loads(run(capsys, "settings", path, "--retention-days", "none", "--json"))["retention_days"] is None
    assert run(capsys, "delete", path, 2) == "1 deleted\n"
    assert run(capsys, "list", path).count("\n") == 1
    assert run(capsys, "forget", path, "--user", "ann") == "2 deleted, and the log\n"
    assert "bytes" in run(capsys, "vacuum", path)


def test_an_audit_that_finds_something_ends_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "Thanks a lot!", "kind": "turn"}')
    run(capsys, "import", tmp_path / "m.db", tmp_path / "in.jsonl")
    assert "1 junk" in run(capsys, "audit", tmp_path / "m.db", code=1)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["list", "none.db"], "is not there"),
        (["add", "m.db-wal", "x"], "m.db-wal has the name of a file that SQLite keeps beside a memory"),
        (["log", "m.db", "--outcome", "addd"], "invalid choice: 'addd'"),
        (["add", "m.db", " "], "the text is empty"),
        (["add", "m.db", "x", "--kind", "passage"], "invalid choice"),
        (["add", "gs://bucket/m.db", "x"], "is neither a file of this machine nor postgresql://"),
        (["search", "m.db", "x", "--limit", "0"], "--limit 0 must be at least 1"),
        (["search", "m.db", "x", "--how", "vectors"], "a search by vectors needs an embedder"),
        (["search", "m.db", "x", "--embedder", "nowhere"], "nowhere"),
        (["search", "m.db", "x", "--floor", "nan"], "floor nan must be a number from 0 to 1"),
        (["add", "m.db", "x", "--days", "nan"], "--days nan must be a number above 0"),
        (["delete", "m.db", "9"], "has no entry 9"),
        (["delete", "m.db", "99999999999999999999"], "has no entry 99999999999999999999"),
        (["update", "m.db", "9", "x"], "has no entry 9"),
        (["history", "m.db", "9"], "has no entry 9"),
        (["settings", "m.db", "--retention-days", "many"], "--retention-days 'many' must be a number of days, or none"),
        (["settings", "m.db", "--floor", "2"], "floor 2.0 must be a number from 0 to 1"),
        (["import", "m.db", "none.jsonl"], "is not there"),
        (["export", "m.db", "m.db/x.jsonl"], "cannot be written"),
        (["export", "m.db", "m.db"], "m.db is an SQLite file, such as a memory, and would be lost"),
        (["forget", "m.db"], "the following arguments are required: --user"),
        (["reembed", "m.db"], "the following arguments are required: --embedder"),
    ],
)
def test_mistakes(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run(capsys, "add", "m.db", "My dog is called Rex")
    assert sentence in run(capsys, *words, code=2)

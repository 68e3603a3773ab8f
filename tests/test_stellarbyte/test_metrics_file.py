"""A line that is JSON is not yet a record, and a file that is called metrics.jsonl not yet one of records."""

import os
from pathlib import Path

import pytest

from stellarbyte import metrics_file
from stellarbyte.errors import UserError
from stellarbyte.metrics_file import TokensSeen, drop_records_after, record_of, records


def test_a_record() -> None:
    assert record_of('{"step": 3, "loss": 1.5}\n') == {"step": 3, "loss": 1.5}


@pytest.mark.parametrize(
    "line",
    ["", "5", "[1]", "null", '{"loss": 1.0}', '{"step": "x"}', '{"step": true}', '{"step": 1, "lo', "[" * 100_000],
)
def test_no_record(line: str) -> None:
    assert record_of(line) is None


def test_records_after_a_step_are_dropped_and_whatever_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    assert list(records(path)) == []
    drop_records_after(path, 3)
    assert not path.exists()
    path.write_bytes(
        b'{"step": 1, "x": 0.1}\n[1]\n{"step": 2, "x": "' + b"y" * 400 + b'"}\n\xff\n{"step": 3}\n{"step": 4}\n{"st'
    )
    monkeypatch.setattr(metrics_file, "MOST_LINE_BYTES", 300)
    assert [record["step"] for _, record in records(path)] == [1, 3, 4]
    kept: list[int] = []
    drop_records_after(path, 3, lambda record: kept.append(record["step"]))
    assert kept == [1, 3] and path.read_text() == '{"step": 1, "x": 0.1}\n{"step": 3}\n'
    drop_records_after(path, 0)
    assert path.read_text() == ""


def test_what_is_no_file_or_too_large_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 1 << 40)
    for name, complaint in (
        ("pipe", "is a folder, a pipe or a device"),
        ("endless", "is a folder, a pipe or a device"),
        (".", "is a folder, a pipe or a device"),
        ("loop", "Too many levels of symbolic links"),
        ("large", "larger than 16 GiB"),
    ):
        with pytest.raises(UserError, match=complaint):
            list(records(tmp_path / name))


def test_tokens_are_summed_or_believed() -> None:
    seen = TokensSeen()
    for step in (1, 2):
        seen.add({"step": step, "tokens": 10.0})
    assert seen.total == 20
    seen.add({"step": 4, "tokens": 10.0})
    assert seen.total is None, "step 3 is lost"
    seen.add({"step": 5, "tokens": 10.0})
    assert seen.total is None
    seen.add({"step": 6, "tokens": 10.0, "tokens_seen": 70})
    seen.add({"step": 16, "tokens": 100.0}, steps=10)
    assert seen.total == 170
    seen.add({"step": 17, "tokens": "many", "tokens_seen": float("inf")})
    assert seen.total is None

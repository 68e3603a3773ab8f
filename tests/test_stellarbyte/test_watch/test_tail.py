"""A file that grows, is cut off, replaced or rewritten is followed to the byte."""

import os
import random
from pathlib import Path

import pytest

from stellarbyte.watch import tail
from stellarbyte.watch.tail import Tail, last_lines


def test_each_line_comes_once_and_whole(tmp_path: Path) -> None:
    path, draw = tmp_path / "metrics.jsonl", random.Random(0)
    lines = [f'{{"step": {step}, "x": "{"y" * draw.randrange(40)}"}}\n'.encode() for step in range(200)]
    content, followed, seen, at = b"".join(lines), Tail(path), [], 0
    assert followed.read() == ([], False, False), "it is not there yet"
    while at < len(content):
        piece = draw.randrange(1, 90)
        with path.open("ab") as file:
            file.write(content[at : at + piece])
        at += piece
        news = followed.read()
        assert not news.anew
        seen += news.lines
    assert [line + b"\n" for line in seen] == lines


def test_half_a_line_waits(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b'{"step": 1}\n{"ste')
    followed = Tail(path)
    assert followed.read().lines == [b'{"step": 1}']
    assert followed.read() == ([], False, False)
    with path.open("ab") as file:
        file.write(b'p": 2}\n')
    assert followed.read().lines == [b'{"step": 2}']


@pytest.mark.parametrize("way", ["truncated", "replaced", "rewritten", "removed"])
def test_a_file_that_is_begun_anew(way: str, tmp_path: Path) -> None:
    path, followed = tmp_path / "m", Tail(tmp_path / "m")
    path.write_bytes(b"1\n2\n3\n")
    assert len(followed.read().lines) == 3
    if way == "truncated":
        os.truncate(path, 2)
    elif way == "replaced":  # by a file of the same size, as a run that goes on makes it
        other = tmp_path / "other"
        other.write_bytes(b"1\n2\n4\n")
        other.replace(path)
    elif way == "rewritten":  # in its place, and longer than before
        path.write_bytes(b"1\n2\n4\n5\n")
    else:
        path.unlink()
        assert followed.read() == ([], True, False)
        path.write_bytes(b"7\n")
        assert followed.read() == ([b"7"], False, False)
        return
    wanted = path.read_bytes().splitlines()
    assert followed.read() == (wanted, True, False)
    assert followed.read() == ([], False, False)


def test_another_file_with_the_same_end(tmp_path: Path) -> None:
    path, followed = tmp_path / "m", Tail(tmp_path / "m")
    end = b"".join(b"%09d\n" % step for step in range(50))
    path.write_bytes(b"1\n" + end)
    assert len(followed.read().lines) == 51
    (tmp_path / "other").write_bytes(b"2\n" + end + b"new\n")
    (tmp_path / "other").replace(path)
    news = followed.read()
    assert news.anew and news.lines[0] == b"2" and len(news.lines) == 52


def test_a_long_file_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_PIECE", 100)
    path, followed, seen = tmp_path / "m", Tail(tmp_path / "m"), []
    path.write_bytes(b"".join(b"%05d\n" % step for step in range(100)))
    more = True
    while more:
        news = followed.read()
        seen += news.lines
        more = news.more
    assert seen == [b"%05d" % step for step in range(100)]


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "_PIECE", 64)
    monkeypatch.setattr(tail, "MOST_LINE_BYTES", 64)
    path, followed, seen = tmp_path / "m", Tail(tmp_path / "m"), []
    path.write_bytes(b"1\n" + b"x" * 1000 + b"\n2\n")
    for _ in range(40):
        seen += followed.read().lines
    assert seen == [b"1", b"2"]


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert Tail(tmp_path / "pipe").read() == ([], False, False)
    assert last_lines(tmp_path / "pipe", 10) == last_lines(tmp_path / "none", 10) == []


def test_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes("first\nzweite ü\n最后\n".encode())
    assert last_lines(path, 1000) == ["first", "zweite ü", "最后"]
    assert last_lines(path, 10) == ["最后"]

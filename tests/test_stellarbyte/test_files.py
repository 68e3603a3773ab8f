"""What is written is whole or not there, and a stranger's names lead nowhere but into the folder."""

import json
import os
import resource

import pytest

from stellarbyte.errors import UserError
from stellarbyte.files import (
    check_path,
    check_plain_name,
    holds,
    json_text,
    sha256_of,
    write_json,
    write_text,
    written_whole,
)


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "new" / "notes.json"
    write_json(path, {"b": "ü\u2028", "a": [1]}, sort_keys=True)
    assert path.read_text("utf-8") == '{\n  "a": [\n    1\n  ],\n  "b": "ü\u2028"\n}\n'
    write_text(path, "a\r\nb\n")
    assert path.read_bytes() == b"a\r\nb\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["notes.json"]


def test_whether_a_file_holds_something_is_known_by_its_size_first(tmp_path):
    path = tmp_path / "file"
    assert not holds(path, b"") and not holds(tmp_path, b"") and not holds(tmp_path / "file" / "x", b"")
    path.write_bytes(b"abc")
    assert holds(path, b"abc") and not holds(path, b"abd") and not holds(path, b"ab")
    os.truncate(path, 1 << 40)
    assert not holds(path, b"abc")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_interrupted_write_leaves_the_old_content(tmp_path, error):
    path = tmp_path / "notes"
    path.write_text("old")

    def write():
        with written_whole(path) as file:
            file.write("new")
            raise error

    with pytest.raises(UserError if error is OSError else error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_sentence_and_leaves_the_old_content(tmp_path):
    path = tmp_path / "notes"
    path.write_text("old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(UserError, match="notes cannot be written: File too large"):
            write_text(path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_json_holds_names_that_are_not_utf8():
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert json.loads(json_text({"path": name})) == {"path": name}
    assert "é" in json_text({"path": "é"})


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a").startswith("ba7816bf")


@pytest.mark.parametrize("name", ["tokenizer.json", "a", ".hidden", "model-00001-of-00002.safetensors", "ü x.txt"])
def test_plain_names(name):
    assert check_plain_name(name, "the index") == name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "...", " ", "../evil.txt", "/etc/passwd", "a/b", "a\\b", "..\\evil", "C:evil", "a\0b", "a\nb",
        "\x1b[2J", "nul", "CON.json", "lpt1.txt", "a.", " a", "a ", "x" * 256, "é" * 128, "\udcff", "a*", None, 3,
        ["a"], "x" * 100_000,
    ],
)  # fmt: skip
def test_names_that_are_refused(name):
    with pytest.raises(UserError, match=r"the index names the file .{1,120}, expected a plain file name"):
        check_plain_name(name, "the index")


@pytest.mark.parametrize("path", ["", "a\nb", "runs/\x1b[2J", "a\0b", "\udcff"])
def test_paths_that_no_config_means(path):
    with pytest.raises(UserError, match=r"output_dir (is empty|'.*' holds a character that cannot be printed)"):
        check_path(path, "output_dir")


@pytest.mark.parametrize("path", [".", "runs/a b", "~/läufe", "/春眠", "[x]", "3.5", "-"])
def test_paths_that_a_config_may_mean(path):
    assert check_path(path, "output_dir") == path

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError, shown
from stellarbyte.reading import MOST_JSON_DEPTH, expanded, parse_json, read_json, read_json_object, read_text

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_a_home_folder_is_found_and_nobody_s_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/runs") == Path("/home/me/runs")
    with pytest.raises(UserError, match=r"^~nobody-of-that-name/runs cannot be found: "):
        expanded("~nobody-of-that-name/runs")


@given(json_values)
def test_json_is_what_the_standard_library_reads(value: Any) -> None:
    text = json.dumps(value)
    assert parse_json(text, "x") == json.loads(text)


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": "\xc3\xa9"}')
    assert read_json_object(path) == {"a": "é"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "x is nested deeper than 64 levels"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "x is nested deeper than 64 levels"),
        ("[" * (MOST_JSON_DEPTH + 1) + "]" * (MOST_JSON_DEPTH + 1), "x is nested deeper than 64 levels"),
        ("9" * 20_000, "x is not valid JSON: Exceeds the limit"),
        ('{"a": 1, "b": 2, "a": 3}', "x is not valid JSON: the key 'a' stands twice in one object"),
        ("", "x is not valid JSON: Expecting value"),
        ("{'a': 1}", "x is not valid JSON: Expecting property name"),
        ("[1] [2]", "x is not valid JSON: Extra data"),
    ],
    ids=["lists", "objects", "a level too deep", "digits", "a key twice", "empty", "quotes", "two values"],
)
def test_json_that_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(UserError) as error:
        parse_json(text, "x")
    assert str(error.value).startswith(complaint)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_the_deepest_json() -> None:
    assert parse_json("[" * MOST_JSON_DEPTH + "]" * MOST_JSON_DEPTH, "x")


def test_files_that_are_no_files(tmp_path: Path) -> None:
    def complaint(path: str | Path) -> str:
        with pytest.raises(UserError) as error:
            read_text(path, 2048)
        return str(error.value).replace(f"{tmp_path}/", "")

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "long").write_bytes(b"a" * 2049)
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 1 << 40)
    (tmp_path / "latin1").write_bytes(b"a\xe9")
    assert complaint(tmp_path / "fifo") == "fifo is a pipe or a device: name a file"
    assert complaint("/dev/zero") == "/dev/zero is a pipe or a device: name a file"
    assert complaint(tmp_path).endswith(" is a folder: name a file")
    assert complaint(tmp_path / "none") == "none cannot be read: No such file or directory"
    assert complaint(tmp_path / "loop") == "loop cannot be read: Too many levels of symbolic links"
    assert complaint(tmp_path / "long") == "long is larger than 2 KiB, the most that such a file may have"
    assert complaint(tmp_path / "sparse").startswith("sparse is larger than")
    assert complaint(tmp_path / "latin1") == "latin1 is not UTF-8 text (byte 1)"
    assert complaint("a\0b") == r"'a\x00b' is no file name: it holds a NUL character"


def test_a_fifo_with_a_writer_is_refused_as_well(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = threading.Thread(target=(tmp_path / "fifo").write_bytes, args=(b"{}",))
    writer.start()
    writer.join()
    with pytest.raises(UserError, match="a pipe or a device"):
        read_json(tmp_path / "fifo")
    os.close(reader)


def test_an_object_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(UserError, match="holds a list, expected an object"):
        read_json_object(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": 1}, "a mapping"),
        ([1], "a list"),
        (None, "null"),
        (True, "true"),
        (12, "12"),
        ("word", "'word'"),
        (10**20_000, "an integer of about 20000 digits"),
        ("a\nb", r"'a\nb'"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_as_errors_name_them(value: object, expected: str) -> None:
    assert shown(value) == expected


@given(st.text() | st.integers() | st.floats() | json_values)
def test_no_value_breaks_a_sentence(value: object) -> None:
    assert len(shown(value)) < 100
    assert "\n" not in shown(value)


def test_long_words_are_cut_in_their_middle() -> None:
    assert shown("begin" + "x" * 1_000_000 + "end").startswith("'begin") and "…" in shown("begin" + "x" * 999 + "end")
    assert shown("begin" + "x" * 999 + "end").endswith("end'")

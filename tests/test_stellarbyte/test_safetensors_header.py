"""Headers of safetensors files: whole ones read as safetensors reads them, every kind of broken one in a sentence."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from stellarbyte.errors import UserError
from stellarbyte.safetensors_header import MAX_HEADER_BYTES, TensorHeader, read_header

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}


def written(path: Path, header: Any, data_bytes: int = 32, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data_bytes))
    return path


def test_what_safetensors_wrote(tmp_path: Path) -> None:
    arrays = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16), "none": np.zeros((0, 5), np.float32)}
    save_file(arrays, tmp_path / "file", metadata={"format": "pt"})
    header = read_header(tmp_path / "file")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in header.items()} == {
        "a": ("F32", (2, 3)), "b": ("F16", (4,)), "none": ("F32", (0, 5)),
    }  # fmt: skip
    assert read_header(written(tmp_path / "file", {"b": B, "a": A})) == {
        "a": TensorHeader("F32", (2, 3), 0, 24), "b": TensorHeader("F16", (4,), 24, 32),
    }  # fmt: skip
    assert list(read_header(written(tmp_path / "file", {"b": B, "a": A}))) == ["a", "b"]


@pytest.mark.parametrize(
    ("header", "changes", "sentence"),
    [
        (b"", {"length": 10**18}, "it ends within its header"),
        ({"a": A}, {"length": 10**6}, "it ends within its header"),
        (b"{", {}, "its header is not valid JSON"),
        (b"\xff\xfe", {}, "its header is not UTF-8 text"),
        (b"[" * 10**5, {}, "its header is nested deeper than"),
        ([1], {}, "its header is no JSON object"),
        (b'{"a": %s, "a": %s}' % ((json.dumps(A).encode(),) * 2), {}, "the key 'a' stands twice"),
        ({"a": A | {"data_offsets": [0, 32], "shape": [8]}, "b": B}, {}, "b begins at byte 24 of the data"),
        ({"b": B}, {}, "b begins at byte 24 of the data, where the one before ends at 0"),
        ({"a": A}, {}, "its tensors have 24 bytes, and the file holds 32"),
        ({"a": A, "b": B}, {"data_bytes": 31}, "its tensors have 32 bytes, and the file holds 31"),
        ({"a": A | {"dtype": "F33"}}, {}, "a has dtype 'F33', which is none of"),
        ({"a": A | {"dtype": ["F32"]}}, {}, "a has dtype"),
        ({"a": A | {"shape": [2, 4]}}, {}, r"a of shape \[2, 4\] in F32 has 24 bytes"),
        ({"a": A | {"shape": [10**12, 10**12]}}, {}, "a of shape"),
        ({"a": A | {"shape": [-2, -3]}}, {}, r"a has shape \[-2, -3\]"),
        ({"a": A | {"shape": [2.0, 3]}}, {}, r"a has shape \[2.0, 3\]"),
        ({"a": A | {"shape": 6}}, {}, "a has shape 6"),
        ({"a": A | {"shape": [1] * 17}}, {}, "a has shape"),
        ({"a": A | {"data_offsets": [24, 0]}}, {}, "a of shape"),
        ({"a": A | {"data_offsets": [0]}}, {}, "a has data_offsets"),
        ({"a": {"dtype": "F32"}}, {}, "a has no dtype, shape and data_offsets"),
        ({"a": None}, {}, "a has no dtype"),
        ({"": A}, {}, "it has a tensor called ''"),
        ({"a\x1b[2J": A}, {}, "it has a tensor called"),
    ],
)
def test_broken_headers_are_one_sentence(header: Any, changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    path = written(tmp_path / "file", header, **changes)
    with pytest.raises(UserError, match=sentence) as refused:
        read_header(path)
    assert str(refused.value).startswith(f"{path} is not a whole safetensors file: ")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400 + len(str(path))


@pytest.mark.parametrize("make", [lambda _: None, Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_not_waited_for(make: Callable[[Path], Any], tmp_path: Path) -> None:
    make(tmp_path / "file")
    with pytest.raises(UserError, match=r"is missing|is not a regular file"):
        read_header(tmp_path / "file")


def test_a_long_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    os.truncate(path, MAX_HEADER_BYTES + 100)
    with pytest.raises(UserError, match=f"and {MAX_HEADER_BYTES} are the most"):
        read_header(path)

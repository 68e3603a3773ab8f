"""Reads weights of every dtype of floats as the libraries do that wrote them."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from stellarbyte.errors import UserError
from stellarbyte.report.stored_arrays import folder_arrays, to_float32

VALUES = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


@pytest.mark.parametrize(("dtype", "word"), [(ml_dtypes.float8_e4m3fn, "F8_E4M3"), (ml_dtypes.float8_e5m2, "F8_E5M2")])
def test_every_byte_of_float8(dtype: type, word: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_float32(codes, word), codes.view(dtype).astype(np.float32))


def test_a_file_of_all_dtypes(tmp_path: Path) -> None:
    dtypes = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    tensors = {word: VALUES.astype(dtype) for word, dtype in dtypes.items()}
    save_file({**tensors, "codes": np.ones((2, 2), np.int32)}, tmp_path / "model.safetensors")
    found = folder_arrays(tmp_path)
    assert set(found) == set(dtypes)
    for word, tensor in tensors.items():
        values = found[word].read()
        assert (values.dtype, values.shape, found[word].shape) == (np.float32, (6, 5), (6, 5))
        np.testing.assert_array_equal(values, tensor.astype(np.float32))


def test_several_files(tmp_path: Path) -> None:
    names = {"a": "one.safetensors", "b": "two.safetensors"}
    for tensor, file in names.items():
        save_file({tensor: VALUES}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert sorted(folder_arrays(tmp_path)) == ["a", "b"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name a folder with weights"):
        folder_arrays(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../other.safetensors"}}))
    with pytest.raises(UserError, match="name a folder with weights"):
        folder_arrays(tmp_path)
    save_file({"a": VALUES}, tmp_path / "model.safetensors")
    array = folder_arrays(tmp_path)["a"]
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UserError, match="ends within a"):
        array.read()

"""Reads the weights of a Hugging Face folder one tensor at a time, as float32, without a framework."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.safetensors_header import WEIGHTS, TensorHeader, data_begin, index_of, read_header, weight_files

# The dtypes whose numbers are the weights themselves, unless a config says that they are codes.
_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
_FLOAT8 = {"F8_E4M3": (4, 3), "F8_E5M2": (5, 2)}


@dataclass(frozen=True)
class StoredArray:
    """A tensor in a file or checkpoint: `read` gives its numbers as float32 each time that it is called."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """The number of numbers."""
        return math.prod(self.shape)


def folder_arrays(folder: Path) -> dict[str, StoredArray]:
    """Name -> array of each tensor of floats in a folder's safetensors files; headers are read now, numbers later.

    Raises:
        UserError: a file is missing, is damaged, or lies outside the folder; there is none.
    """
    files = [folder / file.name for file in weight_files(folder)]
    if not files or not files[0].is_file():
        index = index_of(folder).name
        raise UserError(f"{folder} holds neither {WEIGHTS} nor files that {index} lists: name a folder with weights")
    found = {}
    for file in files:
        headers, begin = read_header(file), data_begin(file)
        for name, header in headers.items():
            if header.dtype in _NUMPY or header.dtype in _FLOAT8:
                found[name] = StoredArray(header.shape, functools.partial(_read, file, begin, name, header))
    return found


def _read(file: Path, begin: int, name: str, header: TensorHeader) -> np.ndarray:
    stored = np.dtype(_NUMPY.get(header.dtype, np.uint8)).newbyteorder("<")
    count = math.prod(header.shape)
    try:
        values = np.fromfile(file, stored, count, offset=begin + header.start)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if values.size != count:
        raise UserError(f"{file} ends within {name}: fetch or save it again")
    return to_float32(values, header.dtype).reshape(header.shape)


def to_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers as they are stored, in one of the dtypes of safetensors' floats, as float32."""
    if dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    if dtype in _FLOAT8:
        return _float8_table(*_FLOAT8[dtype])[values]
    return values.astype(np.float32, copy=False)


@functools.cache
def _float8_table(exponent_bits: int, fraction_bits: int) -> np.ndarray:
    """The number that each byte stands for (Micikevicius et al. 2022, arXiv:2209.05433)."""
    codes = np.arange(256)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent = (codes >> fraction_bits) & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << fraction_bits) - 1)) / (1 << fraction_bits)
    bias = (1 << (exponent_bits - 1)) - 1
    values = sign * np.where(exponent == 0, fraction * 2.0 ** (1 - bias), (1 + fraction) * 2.0 ** (exponent - bias))
    if exponent_bits == 4:  # e4m3 has no infinities, and one NaN of each sign
        values[[0x7F, 0xFF]] = np.nan
    else:
        values[exponent == 31] = np.where(fraction[exponent == 31] == 0, sign[exponent == 31] * np.inf, np.nan)
    return values.astype(np.float32)

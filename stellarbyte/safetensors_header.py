"""Reads the header of a safetensors file in bounded memory, and checks it against the file before tensors are read."""

import math
import stat
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from stellarbyte.errors import UserError, in_full
from stellarbyte.places import Place
from stellarbyte.reading import parse_json, read_json_object

# The bytes of one element. Dtypes narrower than a byte are left out, because no weight of ours or PEFT's has one.
ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

# The weights of a Hugging Face folder: one file, or several that an index beside it lists.
WEIGHTS = "model.safetensors"

# A header has about 150 bytes a tensor, so this is enough for 160,000 tensors.
MAX_HEADER_BYTES = 25_000_000
_LENGTH_BYTES = 8
_MAX_DIMENSIONS = 16
_MAX_NAME = 1000


@dataclass(frozen=True)
class TensorHeader:
    """A tensor's entry in a header: dtype in the format's words, shape, and bytes, counted from the header's end."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def index_of(folder: Place, name: str = WEIGHTS) -> Place:
    """The index of the files that hold what would be in the file of this name."""
    return folder / f"{name}.index.json"


def weight_files(folder: Place, name: str = WEIGHTS) -> list[Place]:
    """The file of this name, or those that its index lists, all of them in the folder; none without.

    Raises:
        UserError: the index cannot be read.
    """
    if (folder / name).exists():
        return [folder / name]
    index = index_of(folder, name)
    listed = read_json_object(index).get("weight_map") if index.exists() else None
    names = sorted({*map(str, listed.values())}) if isinstance(listed, dict) else []
    return [folder / PurePath(name).name for name in names]  # a name that leads out of the folder is not followed


def read_header(path: Place) -> dict[str, TensorHeader]:
    """The name -> header of each tensor in a safetensors file, in the order of their bytes.

    Raises:
        UserError: the file is missing or not a regular file; its header is longer than the file or MAX_HEADER_BYTES, or
            is not JSON; a tensor is named twice, or has an unknown dtype or a wrong size; or tensors overlap, or leave
            bytes between or after them.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file: name a safetensors file")
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            data_bytes = status.st_size - _LENGTH_BYTES - length
            if status.st_size < _LENGTH_BYTES or data_bytes < 0:
                raise _broken(path, "it ends within its header")
            if length > MAX_HEADER_BYTES:
                raise _broken(path, f"its header has {length} bytes, and {MAX_HEADER_BYTES} are the most")
            text = file.read(length)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: fetch or save the folder again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    tensors = {
        name: _tensor(path, name, fields) for name, fields in _parse(path, text).items() if name != "__metadata__"
    }
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    end = 0
    for name, tensor in ordered.items():
        if tensor.start != end:
            raise _broken(path, f"{name} begins at byte {tensor.start} of the data, where the one before ends at {end}")
        end = tensor.end
    if end != data_bytes:
        raise _broken(path, f"its tensors have {end} bytes, and the file holds {data_bytes} behind its header")
    return ordered


def data_begin(path: Place) -> int:
    """The byte of a file at which its tensors begin, if `read_header` takes it. Raises UserError as that does."""
    try:
        with path.open("rb") as file:
            return _LENGTH_BYTES + int.from_bytes(file.read(_LENGTH_BYTES), "little")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _parse(path: Place, text: bytes) -> dict[str, Any]:
    try:
        header = parse_json(text.decode("utf-8"), "its header")
    except UnicodeDecodeError as error:
        raise _broken(path, f"its header is not UTF-8 text (byte {error.start})") from None
    except UserError as error:
        raise _broken(path, str(error)) from None
    if not isinstance(header, dict):
        raise _broken(path, "its header is no JSON object of tensors")
    return header


def _tensor(path: Place, name: str, fields: Any) -> TensorHeader:
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise _broken(
            path, f"it has a tensor called {in_full(name)}, where a name is up to {_MAX_NAME} plain characters"
        )
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise _broken(path, f"{name} has no dtype, shape and data_offsets, or more than these")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise _broken(path, f"{name} has dtype {in_full(dtype)}, which is none of {', '.join(ELEMENT_BYTES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise _broken(path, f"{name} has shape {in_full(shape)}, where up to {_MAX_DIMENSIONS} sizes belong")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _broken(path, f"{name} has data_offsets {in_full(offsets)}, where a first and an end byte belong")
    start, end = offsets
    if end - start != math.prod(shape) * ELEMENT_BYTES[dtype]:
        raise _broken(path, f"{name} of shape {shape} in {dtype} has {end - start} bytes")
    return TensorHeader(dtype, tuple(shape), start, end)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _broken(path: Place, why: str) -> UserError:
    return UserError(f"{path} is not a whole safetensors file: {why}; fetch or save it again")

"""Reads the parameters of a Hugging Face folder from the headers of its files, whatever the weights are stored as."""

import json
import math
from collections.abc import Mapping
from typing import Any

from stellarbyte.errors import UserError, shown
from stellarbyte.places import Place
from stellarbyte.report.names import is_buffer, stem_of_scale
from stellarbyte.report.parameters import tied_head
from stellarbyte.report.subject import StoredTensor
from stellarbyte.safetensors_header import TensorHeader, data_begin, index_of, read_header, weight_files

# A quantised tensor's own description, of bitsandbytes, is a few hundred bytes.
_MOST_STATE_BYTES = 1 << 16


class StoredTensors:
    """The tensors of a folder's safetensors files.

    Attributes:
        parameters: name -> parameter. Of codes the name is that of the weights that they stand for.
        buffers: bytes of tensors that are no parameters.
        files: how many files there are; 0 where the folder has no weights in safetensors files.

    Raises:
        UserError: a file is missing or damaged, or quantised weights are in a format that is not known.
    """

    def __init__(self, folder: Place, fields: Mapping[str, Any]) -> None:
        self._fields, self._quantization = fields, fields.get("quantization_config")
        self._headers: dict[str, tuple[Place, TensorHeader]] = {}
        files = _files(folder)
        for file in files:
            self._headers |= {name: (file, header) for name, header in read_header(file).items()}
        self.files, self.buffers = len(files), 0
        self.parameters: dict[str, StoredTensor] = {}
        beside: dict[str, int] = {}
        for name, (_, header) in self._headers.items():
            stem = stem_of_scale(name) if self._quantization else None
            if stem is not None:
                beside[stem] = beside.get(stem, 0) + _bytes(header)
            elif is_buffer(name, len(header.shape)):
                self.buffers += _bytes(header)
            else:
                weight, tensor = self._parameter(name, header)
                self.parameters[weight] = tensor
        for stem, nbytes in beside.items():
            weight = stem if stem in self.parameters else f"{stem}.weight"
            if weight in self.parameters:
                tensor = self.parameters[weight]
                self.parameters[weight] = StoredTensor(tensor.shape, tensor.dtype, tensor.nbytes + nbytes)
            else:
                self.buffers += nbytes

    @property
    def headers(self) -> list[TensorHeader]:
        """Those of all tensors, codes and scales as they are stored."""
        return [header for _, header in self._headers.values()]

    @property
    def numbers(self) -> int:
        """How many numbers the model has: of a tied head none, and of codes as many as they stand for."""
        again = tied_head(self.parameters, self._fields)
        return sum(math.prod(tensor.shape) for name, tensor in self.parameters.items() if name != again)

    def _parameter(self, name: str, header: TensorHeader) -> tuple[str, StoredTensor]:
        """(the name of the weights that a tensor holds, their shape and what they take)."""
        stem, _, last = name.rpartition(".")
        if self._quantization is None:
            return name, StoredTensor(header.shape, header.dtype, _bytes(header))
        if last == "weight_packed" and f"{stem}.weight_shape" in self._headers:
            shape = self._numbers(f"{stem}.weight_shape")
            return f"{stem}.weight", StoredTensor(shape, _codes(header, shape), _bytes(header))
        if last == "qweight" and len(header.shape) == 2:
            return f"{stem}.weight", self._packed_words(name, header)
        if name.endswith("_blocks") and len(header.shape) == 4:  # two codes of 4 bits a byte
            *outer, groups, half = header.shape
            return name.removesuffix("_blocks"), StoredTensor((*outer, groups * half * 2), "F4", _bytes(header))
        state = next((key for key in self._headers if key.startswith(f"{name}.quant_state.")), None)
        if state is not None:
            shape = self._state(state)
            return name, StoredTensor(shape, _codes(header, shape), _bytes(header))
        return name, StoredTensor(header.shape, header.dtype, _bytes(header))

    def _packed_words(self, name: str, header: TensorHeader) -> StoredTensor:
        """A matrix of GPTQ's or AWQ's codes: [in, out] with codes packed along in, or along out."""
        settings = self._quantization if isinstance(self._quantization, dict) else {}
        bits, method = settings.get("bits"), settings.get("quant_method")
        if not isinstance(bits, int) or not 1 <= bits <= 16:
            raise UserError(
                f"{self._headers[name][0]} holds codes of {name}, and quantization_config.bits in config.json is "
                f"{shown(bits)}, expected a number from 1 to 16: fetch the folder again"
            )
        rows, columns = header.shape
        shape = (columns * 32 // bits, rows) if method == "awq" else (columns, rows * 32 // bits)
        return StoredTensor(shape, f"I{bits}", _bytes(header))

    def _numbers(self, name: str) -> tuple[int, ...]:
        content = self._read(name)
        size = (self._headers[name][1].end - self._headers[name][1].start) // math.prod(self._headers[name][1].shape)
        return tuple(
            int.from_bytes(content[at : at + size], "little", signed=True) for at in range(0, len(content), size)
        )

    def _state(self, name: str) -> tuple[int, ...]:
        try:
            shape = json.loads(self._read(name))["shape"]
            return tuple(int(size) for size in shape)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self._headers[name][0]}: {name} does not tell a shape: fetch it again") from error

    def _read(self, name: str) -> bytes:
        file, header = self._headers[name]
        if not 0 < _bytes(header) <= _MOST_STATE_BYTES:
            raise UserError(f"{file}: {name} has {_bytes(header)} bytes, where a short note belongs: fetch it again")
        with file.open("rb") as opened:
            opened.seek(data_begin(file) + header.start)
            return opened.read(_bytes(header))


def _files(folder: Place) -> list[Place]:
    """The folder's files of weights. Raises UserError if the index of several names none."""
    files = weight_files(folder)
    if not files and index_of(folder).exists():
        raise UserError(f"{index_of(folder)} names no files: fetch or save the folder again")
    return files


def _bytes(header: TensorHeader) -> int:
    return header.end - header.start


def _codes(header: TensorHeader, shape: tuple[int, ...]) -> str:
    """The dtype of codes that are packed: by how many of them share the bytes."""
    count = math.prod(shape)
    bits = 8 * _bytes(header) // count if count else 8
    return f"I{max(1, bits)}"

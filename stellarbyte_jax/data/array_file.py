"""Writes and reads the array files of token shards, which are numpy's, with a CRC-32 for every block of items."""

import os
import threading
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.places import Place

# numpy leaves room in the header for the first axis to grow, so that every array of one axis has a header this long.
HEADER_BYTES = 128

# The first read of a row of tokens reads the whole block that it is in. Smaller blocks would need more checksums, and
# the manifest holds all of these: 32 MB for each TB.
BLOCK_BYTES = 1 << 18

_READ_BYTES = 1 << 24


def block_count(nbytes: int) -> int:
    """The number of blocks, and so of checksums, in `nbytes` of items."""
    return -(-nbytes // BLOCK_BYTES)


class ArrayWriter:
    """Appends items to an array file after its first `length` items, and computes the CRC-32 of each block in it.

    header_length: the length that the header states until `finish`; the final one, if that is known beforehand.
    """

    def __init__(self, path: Path, dtype: np.dtype, header_length: int, length: int = 0) -> None:
        self._dtype = dtype
        # The checksums of the full blocks, and the checksum and length of the block that is being filled.
        self._full: list[int] = []
        self._sum, self._filled = 0, 0
        self._file = path.open("r+b" if length else "w+b")
        if length == 0:
            self._file.write(_header(dtype, header_length))
        self._file.truncate(HEADER_BYTES + length * dtype.itemsize)
        self._file.seek(HEADER_BYTES)
        while block := self._file.read(_READ_BYTES):
            self._add(block)

    def write(self, items: np.ndarray) -> None:
        """Appends items of the file's dtype."""
        data = items.tobytes()
        self._file.write(data)
        self._add(data)

    def _add(self, data: bytes) -> None:
        view = memoryview(data)
        while len(view):
            part = view[: BLOCK_BYTES - self._filled]
            self._sum, self._filled = zlib.crc32(part, self._sum), self._filled + len(part)
            view = view[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._full.append(self._sum)
                self._sum, self._filled = 0, 0

    def sums(self) -> np.ndarray:
        """The CRC-32 of every block, uint32; the last one may not be full."""
        return np.array([*self._full, *([self._sum] if self._filled else [])], np.uint32)

    def flush(self) -> None:
        """Writes everything that was appended to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def finish(self, length: int) -> np.ndarray:
        """Writes the final header and everything else to the disk and closes the file; returns the checksums."""
        self._file.seek(0)
        self._file.write(_header(self._dtype, length))
        self.flush()
        self.close()
        return self.sums()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Source(Protocol):
    """The items of a file that is not on this machine, by their bytes after the header."""

    def read(self, first: int, last: int) -> bytes:
        """The bytes from `first` to `last`, or fewer if the file is shorter. Raises FileNotFoundError or UserError."""

    def forget(self) -> None:
        """Drops what this machine keeps of them."""


class ArrayReader:
    """Reads items of an array file by random access; it never returns a block that was damaged since it was written.

    Args:
        path: the file, which has `length` items of `dtype`.
        dtype: dtype of the items.
        length: the number of items, which the header must state too.
        sums: the checksum of each block, uint32; None for a file that was written without checksums.
        checked: whether each block was found to have its checksum, bool. The caller keeps this array while the file is
            closed and opened again.
        source: where the items come from if `path` is in a bucket.

    Raises:
        UserError: from any method, if the file is missing or damaged, or was cut short after it was opened.
    """

    # np.load would parse the header as Python code, which Python 3.11 cannot do in two threads at once. With a memory
    # map the system would kill the process if the file were cut short.
    def __init__(
        self,
        path: Place,
        dtype: np.dtype,
        length: int,
        sums: np.ndarray | None,
        checked: np.ndarray | None,
        source: Source | None = None,
    ) -> None:
        self._path, self._dtype, self._nbytes = path, dtype, length * dtype.itemsize
        self._sums, self._checked = sums, checked
        assert sums is None or len(sums) == block_count(self._nbytes), (path, len(sums))
        self._source = source
        if source is not None:
            return
        check_size(path, dtype, length)
        self._lock = threading.Lock()
        assert isinstance(path, Path)
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        if self._at(0, HEADER_BYTES) != _header(dtype, length):
            raise damaged(path, "is damaged: its header is not what the manifest says")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Items `start` to `stop`, without the latter."""
        first, last = start * self._dtype.itemsize, stop * self._dtype.itemsize
        if self._sums is None or self._checked is None:
            return np.frombuffer(self._bytes(first, last), self._dtype)
        blocks = range(first // BLOCK_BYTES, block_count(last))
        if self._checked[blocks.start : blocks.stop].all():
            return np.frombuffer(self._bytes(first, last), self._dtype)
        begin, end = blocks.start * BLOCK_BYTES, min(blocks.stop * BLOCK_BYTES, self._nbytes)
        data = memoryview(self._bytes(begin, end))
        if self._source is not None and self._damaged_block(data, blocks) is not None:
            self._source.forget()  # it may be the copy on this machine that was damaged
            data = memoryview(self._bytes(begin, end))
        block = self._damaged_block(data, blocks)
        if block is not None:
            at = HEADER_BYTES + block * BLOCK_BYTES
            raise damaged(self._path, f"is damaged: bytes {at} to {at + BLOCK_BYTES} are not all as they were written")
        self._checked[blocks.start : blocks.stop] = True
        return np.frombuffer(data[first - begin : last - begin], self._dtype)

    def _damaged_block(self, data: memoryview, blocks: range) -> int | None:
        assert self._sums is not None
        for number, block in enumerate(blocks):
            if zlib.crc32(data[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]) != self._sums[block]:
                return block
        return None

    def _bytes(self, first: int, last: int) -> bytes:
        if self._source is not None:
            try:
                data = self._source.read(first, last)
            except FileNotFoundError:
                raise damaged(self._path, "is missing") from None
        else:
            data = self._at(HEADER_BYTES + first, last - first)
        if len(data) != last - first:
            raise damaged(self._path, "was cut short after it was opened")
        return data

    def _at(self, offset: int, count: int) -> bytes:
        parts = []
        try:
            while count and (part := self._read_some(offset, count)):
                parts.append(part)
                offset, count = offset + len(part), count - len(part)
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror}") from error
        return b"".join(parts)

    def _read_some(self, offset: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), count, offset)
        with self._lock:  # Windows has no pread
            self._file.seek(offset)
            return self._file.read(count)


def check_size(path: Place, dtype: np.dtype, length: int, sizes: Mapping[str, int] | None = None) -> None:
    """Refuses a file that cannot hold `length` items of `dtype`; raises UserError.

    sizes: those of all files of its folder, if they are known.
    """
    expected = HEADER_BYTES + length * dtype.itemsize
    if sizes is None:
        sizes = {path.name: path.stat().st_size} if path.is_file() else {}
    size = sizes.get(path.name)
    if size != expected:
        raise damaged(path, "is missing" if size is None else f"has {size} bytes where the manifest says {expected}")


def damaged(path: Place, why: str) -> UserError:
    """The error for a file of token shards that is not as `prepare` left it."""
    return UserError(f"{path} {why}: delete its folder and prepare it again, or bring back what was prepared")


def _header(dtype: np.dtype, length: int) -> bytes:
    content = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (int(length),)}
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, content)
    assert file.tell() == HEADER_BYTES, file.tell()
    return file.getvalue()

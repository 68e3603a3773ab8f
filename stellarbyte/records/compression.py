"""Opens files that may be compressed, and tells a truncated one from a whole one."""

import bz2
import errno
import io
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

BLOCK_BYTES = 1 << 20

# As much compressed data is taken at once. zstd says nothing of how much comes out: at most 128 KiB for 4 bytes.
_INPUT_BYTES = 1 << 10

# A file may ask for this much memory to be unpacked; `xz -9` asks for 65 MiB, `zstd --long=31` for 2 GiB.
_XZ_MEMORY = 1 << 29
_ZSTD_WINDOW = 1 << 31


class BrokenArchive(Exception):
    """What reading a truncated or damaged file raises."""


@contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file as it lies on disk, whose position tells the progress, and its content without compression.

    All that comes before the damage of a broken file is read before BrokenArchive is raised.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    with open_regular(path) as raw:
        new_frame = _NEW_FRAMES.get(path.suffix.lower())
        if new_frame is None:
            yield raw, raw
            return
        with _FrameReader(raw, new_frame) as stream:
            yield raw, io.BufferedReader(stream, BLOCK_BYTES)


def open_regular(path: Path) -> BinaryIO:
    """Opens a file of bytes; raises OSError for a pipe, a socket or a device, which may never end or never begin."""

    def opener(name: str, flags: int) -> int:
        # A pipe that nobody writes to would be waited for.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)  # noqa: SIM115 - the caller's
    kind = irregular_kind(os.fstat(file.fileno()).st_mode)
    if kind is not None:
        file.close()
        raise OSError(errno.EINVAL, f"it is {kind}, not a file: write what it gives to a file first")
    return file


def irregular_kind(mode: int) -> str | None:
    """What something is that is neither a file nor a folder, by its st_mode; None for those."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    names = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")


class _Frame(Protocol):
    """What the decompression objects of bz2 and lzma are, and those of zlib and zstandard are made to be."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _GzipMember:
    """zlib hands back what it did not take for want of room: here it is kept for the next call."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _ZstdFrame:
    """zstandard's object takes all that it is given."""

    needs_input = True

    def __init__(self) -> None:
        self._inner = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int, /) -> bytes:  # noqa: ARG002 - see _INPUT_BYTES
        return self._inner.decompress(data)


_NEW_FRAMES: dict[str, Callable[[], _Frame]] = {
    ".gz": _GzipMember,
    ".zst": _ZstdFrame,
    ".xz": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY),
    ".bz2": bz2.BZ2Decompressor,
}
COMPRESSIONS = tuple(_NEW_FRAMES)


class _FrameReader(io.RawIOBase):
    """Decompresses frames (zstd), members (gzip) or streams (xz, bz2) one after another.

    Unlike zstandard's reader it notices a last one cut short, and unlike gzip's it loses nothing before the damage.
    Whatever the file says, little is decompressed at once.
    """

    def __init__(self, raw: BinaryIO, new_frame: Callable[[], _Frame]) -> None:
        self._raw, self._new_frame = raw, new_frame
        self._frame = new_frame()
        self._in_frame, self._any_frame = False, False
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._output:
            data = b""
            if self._frame.eof:
                data, self._frame, self._in_frame = self._frame.unused_data, self._new_frame(), False
            if self._frame.needs_input:
                data = data or self._raw.read(_INPUT_BYTES)
                if not data:
                    if self._in_frame or not self._any_frame:
                        raise BrokenArchive("it ends too early")
                    return 0
            if not self._in_frame:
                data = data.lstrip(b"\0")  # some tools pad with zeros
            if data or not self._frame.needs_input:
                self._in_frame = self._any_frame = True
                try:
                    self._output = memoryview(self._frame.decompress(data, BLOCK_BYTES))
                except (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError) as error:
                    raise BrokenArchive(str(error)) from None
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

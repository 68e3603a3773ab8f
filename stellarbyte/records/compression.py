"""Opens files that may be compressed, and notices if one is truncated."""

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

# The compressed data read at once. It is little because zstandard cannot limit its output, and 4 bytes may become
# 128 KiB.
_INPUT_BYTES = 1 << 10

# The largest memory that unpacking a file may need; `xz -9` needs 65 MiB, `zstd --long=31` 2 GiB.
_XZ_MEMORY = 1 << 29
_ZSTD_WINDOW = 1 << 31


class BrokenArchive(Exception):
    """The file is truncated or damaged."""


@contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yields the file as stored, whose position shows the progress, and a stream of its decompressed content.

    The stream gives all data before the first damage, and then raises BrokenArchive.

    Raises:
        OSError: the file cannot be opened, or is not a regular file.
    """
    with open_regular(path) as raw:
        new_frame = _NEW_FRAMES.get(path.suffix.lower())
        if new_frame is None:
            yield raw, raw
            return
        with _FrameReader(raw, new_frame) as stream:
            yield raw, io.BufferedReader(stream, BLOCK_BYTES)


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading bytes. Raises OSError for a pipe, a socket or a device, which may block or never end."""

    def opener(name: str, flags: int) -> int:
        # Otherwise opening a pipe would wait for a writer.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=opener)  # noqa: SIM115 - the caller closes it
    kind = irregular_kind(os.fstat(file.fileno()).st_mode)
    if kind is not None:
        file.close()
        raise OSError(errno.EINVAL, f"it is {kind}, not a file: write what it gives to a file first")
    return file


def irregular_kind(mode: int) -> str | None:
    """The kind of something that is neither a file nor a folder, from its st_mode; None for a file or a folder."""
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return None
    names = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")


class _Frame(Protocol):
    """The interface of bz2's and lzma's decompressors; the classes below give it to zlib's and zstandard's."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _GzipMember:
    """A gzip member. zlib returns input for which the output had no room, and this keeps it for the next call."""

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
    """A zstd frame. zstandard's decompressor always takes all of its input."""

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
    """Decompresses frames (zstd), members (gzip) or streams (xz, bz2) one after another, a little at a time.

    Unlike zstandard's reader it notices if the last frame is cut short, and unlike gzip's it loses nothing before the
    damage.
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

"""Opens files that may be compressed, and tells a truncated one from a whole one."""

import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import zstandard

COMPRESSIONS = (".gz", ".zst")
BLOCK_BYTES = 1 << 20

# What reading a truncated or damaged file raises.
BROKEN_ARCHIVE = (EOFError, zlib.error, zstandard.ZstdError)

# As much is decompressed at once: little, for a frame of a repetitive text may grow a thousandfold.
_INPUT_BYTES = 1 << 12


@contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file as it lies on disk, whose position tells the progress, and its content without compression.

    All that comes before the damage of a broken file is read before BROKEN_ARCHIVE is raised.
    """
    with path.open("rb") as raw:
        compression = path.suffix.lower()
        if compression not in COMPRESSIONS:
            yield raw, raw
            return
        new_frame = _new_gzip_member if compression == ".gz" else _new_zstd_frame
        with _FrameReader(raw, new_frame) as stream:
            yield raw, io.BufferedReader(stream, BLOCK_BYTES)


class _Frame(Protocol):
    """What zlib's and zstandard's decompression objects have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _new_gzip_member() -> _Frame:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _new_zstd_frame() -> _Frame:
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


class _FrameReader(io.RawIOBase):
    """Decompresses frames (zstd) or members (gzip) one after another.

    Unlike zstandard's reader it notices a last one cut short, and unlike gzip's it loses nothing before the damage.
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
            data = data or self._raw.read(_INPUT_BYTES)
            if not data:
                if self._in_frame or not self._any_frame:
                    raise EOFError("it ends too early")
                return 0
            if not self._in_frame:
                data = data.lstrip(b"\0")  # some tools pad with zeros
            if data:
                self._in_frame = self._any_frame = True
                self._output = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

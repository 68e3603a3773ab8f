"""Opens files that may be compressed, and tells a truncated one from a whole one."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import zstandard

COMPRESSIONS = (".gz", ".zst")
BLOCK_BYTES = 1 << 20

# What reading a truncated or damaged file raises.
BROKEN_ARCHIVE = (EOFError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError)


@contextmanager
def open_file(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """The file as it lies on disk, whose position tells the progress, and its content without compression."""
    with path.open("rb") as raw:
        compression = path.suffix.lower()
        if compression not in COMPRESSIONS:
            yield raw, raw
        elif path.stat().st_size == 0:
            raise EOFError("it is empty")
        elif compression == ".gz":
            with gzip.GzipFile(fileobj=raw) as stream:
                yield raw, cast(BinaryIO, io.BufferedReader(stream, BLOCK_BYTES))
        else:
            with _ZstdReader(raw) as stream:
                yield raw, io.BufferedReader(stream, BLOCK_BYTES)


class _ZstdReader(io.RawIOBase):
    """Decompresses zstd frames one after another; unlike zstandard's own reader it notices a last one cut short."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame = self._new_frame()
        self._in_frame = False
        self._output = b""

    def _new_frame(self) -> "zstandard.ZstdDecompressionObj":
        return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._output:
            if self._frame.eof:
                block, self._frame, self._in_frame = self._frame.unused_data, self._new_frame(), False
            else:
                block = b""
            block = block or self._raw.read(BLOCK_BYTES // 8)
            if not block:
                if self._in_frame:
                    raise EOFError("it ends inside a zstd frame")
                return 0
            self._in_frame = True
            self._output = self._frame.decompress(block)
        count = min(len(buffer), len(self._output))
        buffer[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

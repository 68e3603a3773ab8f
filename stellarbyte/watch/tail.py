"""Follows a file that another process writes: what is new in it, whether it was begun anew, and its last lines."""

from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple

from stellarbyte.metrics_file import MOST_LINE_BYTES
from stellarbyte.places import Place

# What one call reads at most, so that a long file is shown piece by piece.
_PIECE = 4 << 20
# The last bytes that were read are compared with what is there now: a file may be rewritten and be longer than before.
_MARK = 256


class News(NamedTuple):
    """What a file has since the last call.

    lines: its new whole lines. anew: whether these are its first, because it was replaced, cut off or rewritten.
    more: whether there is more to read at once.
    """

    lines: list[bytes]
    anew: bool
    more: bool


class Tail:
    """The lines of a growing file, each once; half a line waits until it is whole."""

    def __init__(self, path: Place) -> None:
        self._path = path
        self._at, self._mark, self._file = 0, b"", (0, 0)
        self._in_long_line = False

    def read(self) -> News:
        """What is new; nothing if there is no such file yet. Raises OSError if it cannot be read."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return self._begin_anew() if self._at else News([], False, False)
        if not S_ISREG(status.st_mode):
            return News([], False, False)
        anew = self._at > 0 and self._is_another((status.st_dev, status.st_ino), status.st_size)
        if anew:
            self._begin_anew()
        self._file = (status.st_dev, status.st_ino)
        stop = min(status.st_size, self._at + _PIECE)
        content = read_range(self._path, self._at, stop)
        end = content.rfind(b"\n") + 1
        lines = content[:end].split(b"\n")[:-1] if end else []
        if lines and self._in_long_line:
            del lines[0]
            self._in_long_line = False
        if not end and len(content) >= MOST_LINE_BYTES:  # no line of a run's: it is passed over
            end, self._in_long_line = len(content), True
        self._at += end
        self._mark = (self._mark + content[:end])[-_MARK:]
        return News(lines, anew, stop < status.st_size and end > 0)

    def _begin_anew(self) -> News:
        self._at, self._mark, self._in_long_line = 0, b"", False
        return News([], True, False)

    def _is_another(self, file: tuple[int, int], size: int) -> bool:
        if size < self._at or file != self._file:
            return True
        return read_range(self._path, self._at - len(self._mark), self._at) != self._mark


def read_range(path: Place, start: int, stop: int) -> bytes:
    """The bytes from `start` to `stop`, or to the file's end. Raises OSError."""
    if not isinstance(path, Path):
        return path.read_range(start, stop)
    with path.open("rb") as file:
        file.seek(start)
        return file.read(max(0, stop - start))


def last_lines(path: Place, most_bytes: int) -> list[str]:
    """The last whole lines of a text file, of at most so many bytes; none if there is no such file.

    Raises:
        OSError: it cannot be read.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return []
    if not S_ISREG(status.st_mode):
        return []
    start = max(0, status.st_size - most_bytes)
    content = read_range(path, start, status.st_size)
    if start:
        content = content[content.find(b"\n") + 1 :]
    return content.decode("utf-8", "replace").splitlines()

"""Tells folders of this machine from those in a bucket (gs://, s3://), which are read and written through fsspec."""

import errno
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from stellarbyte.bucket_errors import patiently
from stellarbyte.bucket_library import bucket_exists, file_system
from stellarbyte.errors import UserError, shown

_REMOTE = ("gs://", "s3://")

# What is meant as a bucket and is written otherwise; as a path it would make a folder "gs:".
_MISSPELT = re.compile(r"(gs|gcs|s3|s3a|s3n):/", re.IGNORECASE)

# What one request reads of a file that is read in order.
_READ_BYTES = 1 << 20

Result = TypeVar("Result")


def is_remote(path: object) -> bool:
    """Whether this names something in a bucket."""
    return isinstance(path, BucketPath) or (isinstance(path, str) and path.startswith(_REMOTE))


def place(path: "str | Path | BucketPath") -> "Place":
    """The path as an object: a BucketPath for gs://… and s3://…, a Path for everything else.

    Raises:
        UserError: it names no bucket, leads out of one, or is the misspelt name of one.
    """
    if isinstance(path, BucketPath):
        return path
    if isinstance(path, str) and is_remote(path):
        return BucketPath(path)
    if _MISSPELT.match(str(path)):
        why = "a folder in a bucket is written gs://BUCKET/FOLDER or s3://BUCKET/FOLDER"
        raise UserError(f"{shown(str(path))} is no path of this machine: {why}")
    return Path(path)


def local(
    path: "str | Path | BucketPath", field: str, why: str = "it has to be a folder or a file of this machine"
) -> Path:
    """The path, of a field or an option that takes no bucket; raises UserError for one in a bucket."""
    found = path if is_remote(path) else place(path)
    if not isinstance(found, Path):
        raise UserError(f"{field} {path} is in a bucket, but {why}")
    return found


class BucketPath:
    """A file or folder in a bucket, with those of pathlib's methods that mean something there.

    A folder is there as long as a file is below it, so none has to be made. Nothing can be renamed or appended to. It
    is no os.PathLike: what would open it as a file of this machine gets a TypeError, and makes no folder named "gs:".

    Raises:
        UserError: from any method, if the bucket is missing, cannot be reached for `bucket_errors.SECONDS`, or refuses;
            or the library for it is not installed.
    """

    def __init__(self, url: str) -> None:
        self._scheme, _, rest = url.partition("://")
        self._parts = tuple(part for part in rest.split("/") if part not in ("", "."))
        if not self._parts or ".." in self._parts:
            why = "leads upwards" if self._parts else "names no bucket"
            raise UserError(f"{shown(url)} {why}: write {self._scheme}://BUCKET/FOLDER")

    @property
    def bucket(self) -> str:
        """The name of the bucket."""
        return self._parts[0]

    @property
    def key(self) -> str:
        """The bucket and the path in it, as fsspec names a file."""
        return "/".join(self._parts)

    @property
    def parts(self) -> tuple[str, ...]:
        """The bucket and the parts of the path in it."""
        return self._parts

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self._parts[-1]

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return Path(self.name).suffix

    @property
    def parent(self) -> "BucketPath":
        """The folder that it is in; a bucket's is the bucket."""
        return self._with(self._parts[:-1] or self._parts)

    def with_name(self, name: str) -> "BucketPath":
        """The path of this name beside it."""
        return self.parent / name

    def __truediv__(self, below: str) -> "BucketPath":
        return self._with((*self._parts, *(part for part in str(below).split("/") if part)))

    def _with(self, parts: tuple[str, ...]) -> "BucketPath":
        return BucketPath(f"{self._scheme}://{'/'.join(parts)}")

    def __str__(self) -> str:
        return f"{self._scheme}://{self.key}"

    def __repr__(self) -> str:
        return f"BucketPath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketPath) and str(self) == str(other)

    def __lt__(self, other: "BucketPath") -> bool:
        return self._parts < other._parts

    def __hash__(self) -> int:
        return hash(str(self))

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self

    def resolve(self) -> "BucketPath":
        """Itself: a bucket has no links."""
        return self

    def mkdir(self, *, parents: bool = True, exist_ok: bool = True) -> None:
        """Does nothing, as a bucket has no empty folders."""
        del parents, exist_ok

    def exists(self) -> bool:
        """Whether a file is there, or below it."""
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether it is a file."""
        return (self._info() or {}).get("type") == "file"

    def is_dir(self) -> bool:
        """Whether files are below it."""
        return (self._info() or {}).get("type") == "directory"

    def stat(self) -> os.stat_result:
        """Its kind and size alone. Raises FileNotFoundError if it is not there."""
        info = self._info()
        if info is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        kind = stat.S_IFDIR if info["type"] == "directory" else stat.S_IFREG
        return os.stat_result((kind | 0o644, 0, 0, 1, 0, 0, info.get("size") or 0, 0, 0, 0))

    def iterdir(self) -> "Iterator[BucketPath]":
        """What is directly below it; nothing if it is not there."""
        for info in self._listed():
            yield self / info["name"].rstrip("/").rpartition("/")[2]

    def sizes(self) -> dict[str, int]:
        """The name and size in bytes of each file directly below it, by one listing."""
        files = (info for info in self._listed() if info["type"] == "file")
        return {info["name"].rpartition("/")[2]: info["size"] for info in files}

    def files(self) -> "list[BucketPath]":
        """All files below it."""
        found = self._do("read", lambda fs: fs.find(self.key, refresh=True))
        return sorted(self._with(tuple(key.split("/"))) for key in found)

    def bytes_below(self) -> int:
        """The bytes of all files below it."""
        found = self._do("read", lambda fs: fs.find(self.key, detail=True, refresh=True))
        return sum(info["size"] for info in found.values())

    def open(self, mode: str = "rb", buffering: int = _READ_BYTES) -> io.BufferedReader:
        """The file, to read bytes of; ranges are fetched as they are needed. Raises FileNotFoundError."""
        assert mode == "rb", mode
        return io.BufferedReader(_Ranges(self), buffering or _READ_BYTES)

    def read_bytes(self) -> bytes:
        """All that the file holds. Raises FileNotFoundError."""
        return bytes(self._do("read", lambda fs: fs.cat_file(self.key)))

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`, or to the file's end. Raises FileNotFoundError."""
        return bytes(self._do("read", lambda fs: fs.cat_file(self.key, start=start, end=stop))) if stop > start else b""

    def write_bytes(self, content: bytes) -> None:
        """Makes or replaces the file, in one step."""
        self._written(lambda fs: fs.pipe_file(self.key, content))

    def create(self, content: bytes) -> bool:
        """Makes the file in one step if there is none; whether it did so."""
        try:
            self._written(lambda fs: fs.pipe_file(self.key, content, mode="create"))
        except FileExistsError:
            return False
        return True

    def upload(self, file: Path) -> None:
        """Makes or replaces the file by a copy of one of this machine."""
        self._written(lambda fs: fs.put_file(str(file), self.key))

    def download(self, file: Path) -> None:
        """Makes or replaces a file of this machine by a copy of it. Raises FileNotFoundError."""
        self._do("read", lambda fs: fs.get_file(self.key, str(file)))

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the file. Raises FileNotFoundError if it is not there, unless `missing_ok`."""
        try:
            self._do("deleted", lambda fs: fs.rm_file(self.key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def delete_below(self) -> None:
        """Deletes all files below it, those named in no particular order."""
        files = [file.key for file in self.files()]
        if files:
            self._do("deleted", lambda fs: fs.rm(files))

    def move_below(self, target: "BucketPath") -> None:
        """Moves all files below it to below `target`, by copies within the bucket; what is there goes first."""
        target.delete_below()
        for file in self.files():
            moved = f"{target.key}/{file.key.removeprefix(self.key).lstrip('/')}"
            file._written(lambda fs, file=file, moved=moved: fs.cp_file(file.key, moved))  # type: ignore[misc]
        self.delete_below()

    def _info(self) -> dict[str, Any] | None:
        try:
            return dict(self._do("read", lambda fs: fs.info(self.key)))
        except FileNotFoundError:
            self._check_there()
            return None

    def _listed(self) -> list[dict[str, Any]]:
        try:
            found = self._do("read", lambda fs: fs.ls(self.key, detail=True, refresh=True))
        except FileNotFoundError:
            self._check_there()
            return []
        return [info for info in found if info["name"].rstrip("/") != self.key]  # some make an object for a folder

    def _check_there(self) -> None:
        """Tells a bucket that is missing from an empty place in one that is there."""
        if (self._scheme, self.bucket) not in _SEEN:
            if not self._do("read", lambda fs: bucket_exists(fs, self.bucket)):
                raise UserError(f"{self} cannot be used: there is no bucket {self.bucket}, or none that you may see")
            _SEEN.add((self._scheme, self.bucket))

    def _written(self, call: Callable[[Any], object]) -> None:
        try:
            self._do("written", call)
        except FileNotFoundError:
            self._check_there()
            raise

    def _do(self, what: str, call: Callable[[Any], Result]) -> Result:
        return patiently(f"{self} cannot be {what}", lambda: call(file_system(self._scheme)))


Place = Path | BucketPath

# The buckets that were seen to be there.
_SEEN: set[tuple[str, str]] = set()


class _Ranges(io.RawIOBase):
    """The bytes of a file in a bucket, fetched range by range."""

    def __init__(self, path: BucketPath) -> None:
        self._path, self._at, self._size = path, 0, path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        found = self._path.read_range(self._at, min(self._at + len(buffer), self._size))
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

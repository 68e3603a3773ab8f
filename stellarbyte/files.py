"""Writes files whole or not at all, hashes them, and checks that names and paths of files are safe."""

import errno
import hashlib
import io
import json
import os
import re
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from stellarbyte.errors import UserError, shown
from stellarbyte.places import BucketPath, Place, local, place

# Windows opens devices by these names, whatever the suffix, and a folder made on another system may be read there.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

_LONGEST_NAME = 255


def holds(path: Path, content: bytes) -> bool:
    """Whether a file has these very bytes; one of another size, which might be a terabyte's, is not read."""
    try:
        status = path.stat()
        return stat.S_ISREG(status.st_mode) and status.st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


@contextmanager
def written_whole(path: Place) -> Iterator[TextIO]:
    """Yields a text file to fill (UTF-8, line ends as written), which replaces `path` once it is on disk.

    After an error, an interruption or a power failure, `path` has its old content. Missing folders are made.

    Raises:
        UserError: the file cannot be written, for example because the disk is full.
    """
    if isinstance(path, BucketPath):
        written = io.BytesIO()
        text = io.TextIOWrapper(written, encoding="utf-8", newline="")
        yield text
        text.flush()
        path.write_bytes(written.getvalue())
        return
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8", newline="") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error


def write_text(path: Place, text: str) -> None:
    """Replaces a file in one step. Raises UserError where `written_whole` does."""
    with written_whole(path) as file:
        file.write(text)


def write_json(path: Place, content: object, *, sort_keys: bool = False) -> None:
    """Replaces a JSON file in one step. Raises UserError where `written_whole` does."""
    write_text(path, json_text(content, sort_keys=sort_keys))


def json_text(content: Any, *, sort_keys: bool = False) -> str:
    """JSON for people to read: indented, in UTF-8, with a line end."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # for example a file's name that is not UTF-8; all non-ASCII characters are escaped
        text = json.dumps(content, indent=2, sort_keys=sort_keys) + "\n"
    return text


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal. Raises OSError, also for a pipe, which might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """The SHA-256 of JSON values, in hexadecimal; the order of an object's keys makes no difference."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_plain_name(name: object, where: str) -> str:
    """Returns `name` if it is a plain file name on every system; `where` names its source in errors.

    Untrusted names such as "../x", "/etc/x" or "C:x" could lead to any folder.

    Raises:
        UserError: the name is not a string, is empty, "." or "..", too long, or a device of Windows, or holds a
            separator, a colon or an unprintable character.
    """
    plain = (
        isinstance(name, str)
        and name.strip(" .") != ""
        and name == name.strip()
        and not name.endswith(".")
        and not any(character in '/\\:*?"<>|' or unicodedata.category(character) in ("Cc", "Cs") for character in name)
        and not _DEVICE.fullmatch(name)
        and len(name.encode()) <= _LONGEST_NAME
    )
    if not plain:
        raise UserError(f"{where} names the file {shown(name)}, expected a plain file name without a folder")
    assert isinstance(name, str)
    return name


def check_path(path: str, field: str, *, bucket: bool = False) -> str:
    """Returns a config's path if it can be intended; `field` names it in errors.

    bucket: whether it may be in a bucket.

    Raises:
        UserError: the path is in a bucket that it may not be in, or it is empty, which would mean the current folder,
            or it holds an unprintable character, so that messages would show another path than the one used.
    """
    if not path:
        raise UserError(f"{field} is empty: name a folder or a file")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise UserError(f"{field} {shown(path)} holds a character that cannot be printed: choose another name")
    try:
        found = place(path)
    except UserError as error:
        raise UserError(f"{field} {error}") from None
    if not bucket:
        local(found, field)
    return path


def _sync_folder(folder: Path) -> None:
    # Without this a power failure may undo the renaming. Windows cannot open a folder, and some network disks cannot
    # sync one.
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

"""Files that are written whole or not at all, are known by their sha256, and never lie outside their folder."""

import errno
import hashlib
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

# Windows opens devices by these names, whatever the suffix; a folder that was made elsewhere may be read there.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

_LONGEST_NAME = 255


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """Gives a text file (UTF-8, line ends as written) to fill, which takes the place of `path` once it is on disk.

    After an error, an interruption or a power failure, `path` holds what it held before. Missing folders are made.

    Raises:
        UserError: the file cannot be written, for example because the disk is full.
    """
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


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step; raises UserError as `written_whole`."""
    with written_whole(path) as file:
        file.write(text)


def write_json(path: Path, content: object, *, sort_keys: bool = False) -> None:
    """Replaces a file of JSON in one step; raises UserError as `written_whole`."""
    write_text(path, json_text(content, sort_keys=sort_keys))


def json_text(content: Any, *, sort_keys: bool = False) -> str:
    """JSON for people: indented, in UTF-8, with a line end."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=sort_keys) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError:  # a file's name that is not UTF-8, say: then every such character is escaped
        text = json.dumps(content, indent=2, sort_keys=sort_keys) + "\n"
    return text


def sha256_of(path: Path) -> str:
    """The SHA-256 of a regular file's content, in hexadecimal; raises OSError, as of a pipe, which might never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_json(content: Any) -> str:
    """The SHA-256 of JSON values, in hexadecimal; the order of an object's keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_plain_name(name: object, where: str) -> str:
    """Returns `name` if it is the name of a file that lies in its folder on every system; `where` is who says it.

    Names that a stranger wrote may otherwise lead anywhere: "../x", "/etc/x", "C:x".

    Raises:
        UserError: it is no text, empty, "." or "..", too long, a device of Windows, or holds a separator, a colon or a
            character that cannot be printed.
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


def check_path(path: str, field: str) -> str:
    """Returns a config's path if it can be one that is meant; `field` is who names it.

    Raises:
        UserError: it is empty, which would be the folder that one happens to be in, or holds a character that cannot be
            printed, so that another path would be shown than is used.
    """
    if not path:
        raise UserError(f"{field} is empty: name a folder or a file")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        raise UserError(f"{field} {shown(path)} holds a character that cannot be printed: choose another name")
    return path


def _sync_folder(folder: Path) -> None:
    # Else a power failure may undo the renaming; Windows can open no folder, and some network disks sync none.
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

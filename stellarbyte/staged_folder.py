"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import BucketPath, Place

Folder = TypeVar("Folder", Path, BucketPath, Place)


@contextmanager
def staged(target: Folder, keep: frozenset[str] = frozenset(), *, is_locked: bool = False) -> Iterator[Folder]:
    """Yields a new folder beside `target` to fill, which replaces `target` if all goes well.

    The old content of `target` is then removed, except the entries named in `keep`: those move into the new folder
    unless it has an entry of that name. After an error, or an interruption before the last moment, `target` is as it
    was. Folders that a killed process left beside it are removed. is_locked: whether the caller already holds the
    folder's lock. In a bucket, where nothing can be renamed, an empty `target` is filled in its place, and emptied
    after an error: what reads it knows by its last file that it is whole.

    Raises:
        UserError: the disk is full, the folder cannot be written, or another process is writing it.
    """
    with nullcontext() if is_locked else folder_lock(target, doing="export"):
        if isinstance(target, BucketPath):
            try:
                yield target
            except BaseException:
                with suppress(UserError):
                    target.delete_below()
                raise
        else:
            yield from _staged(target, keep)


def _staged(target: Path, keep: frozenset[str]) -> Iterator[Path]:
    given, target = target, _linked(target)
    partial, aside = partial_folder(target), _sibling(target, "old")
    try:
        if aside.exists():
            _refuse_or_undo(aside, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
        partial.mkdir()
        yield partial
        if not target.exists():
            partial.rename(target)
            return
        target.rename(aside)
        try:
            partial.rename(target)
        except OSError:
            aside.rename(target)
            raise
        for name in keep:
            if not (target / name).exists():
                (aside / name).rename(target / name)
        shutil.rmtree(aside)
    except OSError as error:
        raise UserError(f"{given} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_folder(target: Path) -> Path:
    """The folder that `staged` yields for `target`; other processes may write there too while the first is in it."""
    return _sibling(_linked(target), "partial")


def _linked(target: Path) -> Path:
    """The folder itself, where `target` is a link to it: the link stays, and what it leads to is replaced."""
    return Path(os.path.realpath(target))


def _refuse_or_undo(aside: Path, target: Path) -> None:
    if target.exists():
        raise UserError(
            f"{aside} holds what an interrupted command set aside: move out of it what you want to keep, then remove it"
        )
    aside.rename(target)


def _sibling(target: Path, suffix: str) -> Path:
    return target.parent / f".{target.name}.{suffix}"

"""A folder that appears whole or not at all."""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from stellarbyte import journal
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.interrupt import Interrupted
from stellarbyte.places import BucketPath, Place

Folder = TypeVar("Folder", Path, BucketPath, Place)


class Unfinished(Exception):
    """Leaves `staged` without the target, which has not come out well. state: what stays of the work, in words."""

    state = ""


@contextmanager
def staged(
    target: Folder,
    keep: frozenset[str] = frozenset(),
    *,
    is_locked: bool = False,
    task: Mapping[str, Any] | None = None,
) -> Iterator[Folder]:
    """Yields a new folder beside `target` to fill, which replaces `target` if all goes well.

    The old content of `target` is then removed, except the entries named in `keep`: those move into the new folder
    unless it has an entry of that name. After an error, or an interruption before the last moment, `target` is as it
    was. Folders that a killed process left beside it are removed. In a bucket, where nothing can be renamed, an empty
    `target` is filled in its place, and emptied after an error: what reads it knows by its last file that it is whole.

    Args:
        target: the folder.
        keep: the names of its entries that stay.
        is_locked: whether the caller already holds the folder's lock.
        task: of a command that keeps a `Journal`, the journal's task. The new folder then has what was done of this
            task before it was interrupted, killed, left as `Unfinished`, or the disk was full.

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
            yield from _staged(target, keep, task)


def _staged(target: Path, keep: frozenset[str], task: Mapping[str, Any] | None) -> Iterator[Path]:
    given, target = target, _linked(target)
    partial, aside = partial_folder(target), _sibling(target, "old")
    try:
        if aside.exists():
            _refuse_or_undo(aside, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if task is None or not journal.can_go_on(partial, task):
            shutil.rmtree(partial, ignore_errors=True)  # a killed process may have left it
        partial.mkdir(exist_ok=True)
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
        later = _left(partial, task)
        raise UserError(f"{given} cannot be written: {error.strerror or error}{later and f'; {later}'}") from error
    except (Interrupted, Unfinished) as error:
        error.state = _left(partial, task)
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _left(partial: Path, task: Mapping[str, Any] | None) -> str:
    """Removes the unfinished folder, unless a command can go on with it; returns what is left, in words."""
    if task is not None and journal.can_go_on(partial, task):
        return f"what is done stays in {partial}, and the same command goes on from there"
    shutil.rmtree(partial, ignore_errors=True)
    return ""


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

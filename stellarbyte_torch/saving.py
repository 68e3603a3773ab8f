"""Saves folders that libraries write: whole or not at all, with a manifest, and with one sentence about a full disk."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stellarbyte.errors import UserError
from stellarbyte.file_manifest import write_manifest
from stellarbyte.staged_folder import staged

# Words in the errors of torch.save and tokenizers, which are not OSErrors, that mean a file could not be written.
_CANNOT_WRITE = re.compile(r"PytorchStreamWriter|inline_container|file write failed|Parent directory|os error \d+")


@contextmanager
def saved_whole(folder: Path, *, is_locked: bool = False) -> Iterator[Path]:
    """Yields a new folder to fill; after the block it gets a manifest and takes the place of `folder`.

    is_locked: whether the caller already holds the folder's lock.

    Raises:
        UserError: the disk is full, or the folder cannot be written; `folder` is then as it was.
    """
    with staged(folder, is_locked=is_locked) as partial, written(folder, "it"):
        yield partial
        write_manifest(partial, {})


@contextmanager
def written(folder: Path, what: str) -> Iterator[None]:
    """Turns the errors that libraries raise if a disk is full or cannot be written into one sentence.

    Raises:
        UserError: `what` could not be written in `folder`.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"{what} cannot be written in {folder}: {_reason(error)}") from error
    except Exception as error:  # tokenizers raises the bare class
        if not _CANNOT_WRITE.search(str(error)):
            raise
        raise UserError(f"{what} cannot be written in {folder}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    # safetensors and tokenizers put other words around the system's message, and torch drops it.
    return "no space left on the disk" if "No space left" in text else text[:200] or type(error).__name__

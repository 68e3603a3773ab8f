"""Checkpoints by their folders: of which step each is, whether it is whole, when it was saved, and its size."""

import re
from contextlib import suppress

from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, Place
from stellarbyte.reading import read_json_object

# A folder of pretraining whose name has this is not whole, by Orbax's convention: the next run clears it away.
UNFINISHED = ".orbax-checkpoint-tmp"

# What Orbax writes last into a checkpoint in a bucket, where nothing can be renamed.
WHOLE = "commit_success.txt"

_STEP = re.compile(r"0|[1-9][0-9]{0,17}")
_FINETUNING = "checkpoint-"


def step_of(name: str, *, finetuning: bool = False) -> int | None:
    """The step in the name of a checkpoint's folder; None if it is none.

    finetuning: whether a name of Transformers' Trainer, such as checkpoint-500, is one as well.
    """
    number = name.removeprefix(_FINETUNING) if finetuning else name
    return int(number) if _STEP.fullmatch(number) else None


def committed_at(checkpoint: Place) -> float | None:
    """When a checkpoint of pretraining was whole, in seconds since 1970; None if its files do not say.

    This is Orbax's own record: the time of a file is that of its last copy.
    """
    with suppress(UserError):
        committed = read_json_object(checkpoint / "_CHECKPOINT_METADATA").get("commit_timestamp_nsecs")
        if isinstance(committed, int) and 0 < committed < 2**63:
            return committed / 1e9
    return None


def size_of(checkpoint: Place) -> int:
    """The bytes of a checkpoint's files."""
    if isinstance(checkpoint, BucketPath):
        return checkpoint.bytes_below()
    size = 0
    for path in checkpoint.rglob("*"):
        with suppress(OSError):  # the run is in training, and is deleting it
            size += path.stat().st_size if path.is_file() else 0
    return size

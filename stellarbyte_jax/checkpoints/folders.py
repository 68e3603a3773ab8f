"""The folders in which a run keeps its checkpoints: which there are, and how one is deleted."""

import shutil

from stellarbyte.checkpoint_names import UNFINISHED, WHOLE, step_of
from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, Place, place


def checkpoints_of(run_dir: str | Place) -> Place:
    """The folder of a run's checkpoints, each of which is a folder named like its step."""
    return place(run_dir) / "checkpoints"


def checkpoint_steps(run_dir: str | Place) -> list[int]:
    """The steps of all checkpoints, readable or not, ascending."""
    # A checkpoint that is being written, or that a crash left half-written, has a longer name than its step.
    folder = checkpoints_of(run_dir)
    if isinstance(folder, BucketPath):
        names = [entry.name for entry in folder.iterdir() if step_of(entry.name) is not None]
        names = [name for name in names if (folder / name / WHOLE).exists()]
    else:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()] if folder.is_dir() else []
    return sorted(step for name in names if (step := step_of(name)) is not None)


def latest_step(run_dir: str | Place) -> int | None:
    """The step of the newest checkpoint, readable or not; None if there is none."""
    return max(checkpoint_steps(run_dir), default=None)


def delete_whole(checkpoint: Place) -> None:
    """Deletes a checkpoint's folder so that it is there whole or not at all, even if this is cut short.

    Raises:
        UserError: it is not there, or cannot be deleted.
    """
    if isinstance(checkpoint, BucketPath):
        (checkpoint / WHOLE).unlink(missing_ok=True)  # from here on it is none
        checkpoint.delete_below()
        return
    doomed = checkpoint.with_name(f"{checkpoint.name.partition('.')[0]}{UNFINISHED}-deleted")
    shutil.rmtree(doomed, ignore_errors=True)
    try:
        checkpoint.rename(doomed)
    except OSError as error:
        raise UserError(f"{checkpoint} cannot be deleted: {error.strerror or error}") from error
    shutil.rmtree(doomed, ignore_errors=True)


def delete_after(run_dir: str | Place, step: int) -> None:
    """Deletes all checkpoints of later steps; raises UserError as `delete_whole` does."""
    for later in checkpoint_steps(run_dir):
        if later > step:
            delete_whole(checkpoints_of(run_dir) / str(later))

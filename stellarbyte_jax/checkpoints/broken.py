"""Reports checkpoints that cannot be read or cannot be checked, and moves broken ones aside."""

import shutil
import sys
from collections.abc import Mapping, Sequence

from stellarbyte.checkpoint_names import WHOLE
from stellarbyte.errors import UserError, one_line
from stellarbyte.places import BucketPath, Place
from stellarbyte_jax.checkpoints.metadata import Stored

BROKEN = ".broken"  # ends the name of a checkpoint that was set aside


def cannot_be_read(folder: Place, steps: Sequence[int], step: int | None, complaints: Mapping[int, str]) -> UserError:
    """The error for a `folder` of which no checkpoint, or not that of `step`, can be read.

    complaints: step -> what is wrong with its checkpoint.
    """
    listed = ", ".join(map(str, steps))
    if step is not None:
        others = ", ".join(str(other) for other in steps if other != step)
        advice = f"choose another step ({others})" if others else "there is no other"
        return UserError(f"{folder / str(step)} cannot be read ({complaints[step]}): {advice}")
    why = complaints.get(max(complaints, default=-1), "it was removed meanwhile")
    return UserError(f"{folder}: none of its checkpoints can be read (steps {listed}), the newest because {why}")


def warn_of_broken(folder: Place, complaints: Mapping[int, str]) -> None:
    """Tells which checkpoints were passed over, and why."""
    for step, complaint in complaints.items():
        print(f"stellarbyte: warning: {folder / str(step)} is broken: {one_line(complaint)}", file=sys.stderr)


def warn_of_unchecked(stored: Stored, checkpoint: Place) -> None:
    """Warns that damage to the metadata cannot be seen, if it has no checksum."""
    if not stored.is_checked:
        print(
            f"stellarbyte: warning: {checkpoint} was saved by an earlier version, without a checksum of its config and "
            "tokenizer: damage to them cannot be seen",
            file=sys.stderr,
        )


def set_aside(broken: Place) -> None:
    """Renames a checkpoint that cannot be read, so that its step can be written anew."""
    if isinstance(broken, BucketPath):
        aside: Place = _moved_aside(broken)
    else:
        aside = broken.with_name(f"{broken.name}{BROKEN}")
        shutil.rmtree(aside, ignore_errors=True)
        broken.rename(aside)
    print(f"stellarbyte: warning: going on from an older checkpoint; the broken one is now {aside}", file=sys.stderr)


def _moved_aside(broken: BucketPath) -> BucketPath:
    (broken / WHOLE).unlink(missing_ok=True)  # from here on it is no checkpoint
    aside = broken.parent.parent / "broken" / broken.name  # Orbax clears away what is none beside them
    broken.move_below(aside)
    return aside

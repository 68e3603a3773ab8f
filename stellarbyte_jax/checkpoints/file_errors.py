"""Tells what may be wrong with a checkpoint's files, by the errors of those who read them."""

import os
import re
import stat

from stellarbyte.bucket_errors import is_of_bucket
from stellarbyte.places import BucketPath, Place

_OF_BUCKET = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|NOT_FOUND): ")


def check_plain_files(folder: Place) -> None:
    """Refuses a checkpoint's folder that holds anything but files and folders: opening a pipe would wait for ever.

    Raises:
        OSError: an entry cannot be looked at.
        ValueError: an entry is neither a file nor a folder.
    """
    if isinstance(folder, BucketPath):  # where there is nothing else
        return
    for path in folder.rglob("*"):
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ValueError(f"{path} is a pipe or a device")


def is_about_files(error: Exception) -> bool:
    """Whether Orbax, TensorStore or json may raise this over files that are missing, cut short or garbled."""
    # Orbax wraps TensorStore's errors in a bare Exception. A subclass that is not listed is a bug, not a broken file.
    kinds = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)
    return type(error) is Exception or isinstance(error, kinds)


def is_from_system(error: Exception) -> bool:
    """Whether the operating system or a bucket refused something: a full disk, say, or a lack of permission."""
    # TensorStore reports the system's errors as a ValueError, and those of a bucket by gRPC's words.
    return is_of_bucket(error) or "os_error_code" in str(error) or _OF_BUCKET.search(str(error)) is not None


def reason(error: Exception) -> str:
    """The error in one line for a user; for a long chain of TensorStore's, this is the system's own message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    system = re.search(r"os_error_code='?(\d+)", str(error))
    if system:
        return os.strerror(int(system[1]))
    if type(error) is Exception:
        return "its arrays are missing, cut short or garbled"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

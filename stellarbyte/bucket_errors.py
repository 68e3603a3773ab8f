"""Tries requests to a bucket again while it cannot be reached, and says in a sentence what it refuses for good."""

import time
from collections.abc import Callable
from typing import TypeVar

from stellarbyte.errors import UserError

# How long a request is tried again, beside the tries that the library makes by itself.
SECONDS = 120.0
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 15.0

# The libraries whose exceptions speak of the network and of what a server answers.
_LIBRARIES = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "requests", "urllib3", "s3fs", "fsspec"}

_CREDENTIALS = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ProfileNotFound",
    "NoAuthTokenError",
)
_REFUSED = (
    "forbidden",
    "access denied",
    "accessdenied",
    "signaturedoesnotmatch",
    "invalidaccesskeyid",
    "does not have storage.",
)

Result = TypeVar("Result")


class BucketError(UserError):
    """A bucket that could not be reached, although that was tried for as long as `SECONDS`."""


def patiently(failing: str, request: Callable[[], Result]) -> Result:
    """The result of the request, which is made again while the bucket cannot be reached.

    failing: how the sentence begins, such as "gs://b/x cannot be read".

    Raises:
        FileNotFoundError, FileExistsError: as the request does.
        UserError: credentials are missing, or the request is refused.
        BucketError: it could not be reached for `SECONDS`.
    """
    begun, wait = time.monotonic(), _FIRST_WAIT
    while True:
        try:
            return request()
        except (FileNotFoundError, FileExistsError) as error:
            if "bucket does not exist" in str(error):
                raise UserError(f"{failing}: there is no such bucket") from error
            raise
        except Exception as error:
            if isinstance(error, UserError) or not is_of_bucket(error):
                raise
            refusal = _refusal(error)
            if refusal is not None:
                raise UserError(f"{failing}: {refusal}") from error
            tried = time.monotonic() - begun
            if tried + wait > SECONDS:
                raise BucketError(f"{failing}, tried for {tried:.0f} seconds: {in_words(error)}") from error
        time.sleep(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def is_of_bucket(error: BaseException) -> bool:
    """Whether this is an exception of the network or of a library that reads buckets."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES


def in_words(error: BaseException) -> str:
    """The error on one short line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def _refusal(error: BaseException) -> str | None:
    """What no further try would change; None if one may."""
    kind, text = type(error).__name__, str(error)
    code = getattr(error, "code", None)
    if kind in _CREDENTIALS or "credentials were not found" in text or "Anonymous caller" in text:
        return (
            "no credentials were found for it; run `gcloud auth application-default login` for gs://, or `aws "
            "configure` for s3://, or set their environment variables"
        )
    if (
        isinstance(error, PermissionError)
        or code in (401, 403, "401", "403")
        or any(w in text.lower() for w in _REFUSED)
    ):
        return f"your credentials may not do that ({in_words(error)})"
    return None

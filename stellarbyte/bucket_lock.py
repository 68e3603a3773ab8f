"""Keeps a second process from writing into a folder in a bucket that another process is already writing."""

import json
import secrets
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath

NAME = ".stellarbyte.lock"

# A holder says so often that it lives. Who finds the lock of one that says nothing for so long takes it over.
REFRESH_SECONDS, SILENT_SECONDS = 15.0, 60.0

_SECONDS_TO_GIVE_BACK = 5.0


class BucketLock:
    """A lock that is held: a file in the folder, which names the holder and is written anew while it lives."""

    def __init__(self, folder: BucketPath, holder: Mapping[str, Any]) -> None:
        self._file, self._holder = folder / NAME, {**holder, "id": secrets.token_hex(8)}
        self._beat = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="bucket lock", daemon=True)
        self._taken_by: dict[str, Any] | None = None

    def content(self) -> bytes:
        """What the file holds now; it differs from all that it has held before."""
        self._beat += 1
        return json.dumps({**self._holder, "beat": self._beat}).encode()

    def is_ours(self) -> bool:
        """Whether the file is there and is this lock's."""
        found = read_holder(self._file)
        return found is not None and found.get("id") == self._holder["id"]

    def start(self) -> None:
        """Begins to write it anew."""
        self._thread.start()

    def end(self) -> None:
        """Gives the lock back, unless another has it now."""
        self._ended.set()
        giving = threading.Thread(target=self._give_back, name="bucket lock", daemon=True)
        giving.start()
        giving.join(_SECONDS_TO_GIVE_BACK)  # the network may be away; then the lock falls silent

    def _give_back(self) -> None:
        with suppress(UserError, FileNotFoundError):
            if self.is_ours():
                self._file.unlink(missing_ok=True)

    def _refresh(self) -> None:
        while not self._ended.wait(REFRESH_SECONDS):
            with suppress(UserError, FileNotFoundError):  # the network is away
                if self.is_ours():
                    self._file.write_bytes(self.content())
                elif (found := read_holder(self._file) or {}).get("id") not in (None, self._holder["id"]):
                    self._taken_by = found
                    return

    def check(self, refusal: Callable[[Mapping[str, Any]], str]) -> None:
        """Raises UserError if another process has taken the lock over while this one could not reach the bucket."""
        if self._taken_by is not None:
            raise UserError(refusal(self._taken_by))


@contextmanager
def bucket_lock(
    folder: BucketPath,
    holder: Mapping[str, Any],
    is_gone: Callable[[dict[str, Any]], bool],
    refusal: Callable[[Mapping[str, Any]], str],
) -> Iterator[BucketLock]:
    """Makes this process the only writer of `folder` inside the block.

    A bucket has no locks that end with a process. So a lock is taken over at once if its process was of this host and
    is gone, and otherwise if it is not written anew for SILENT_SECONDS; that is told.

    Args:
        folder: the folder to write.
        holder: what is told of this process.
        is_gone: whether the process of another holder is known to run no longer.
        refusal: the sentence for another holder that lives.

    Raises:
        UserError: another process holds the lock, or the bucket cannot be written.
    """
    lock, file = BucketLock(folder, holder), folder / NAME
    found = read_holder(file)
    if found is not None:
        _wait_for_silence(file, found, is_gone, refusal)
        file.unlink(missing_ok=True)
    if not file.create(lock.content()) or not lock.is_ours():
        raise UserError(refusal(read_holder(file) or {}))
    lock.start()
    try:
        yield lock
    finally:
        lock.end()


def read_holder(file: BucketPath) -> dict[str, Any] | None:
    """What the file of a lock says of its holder; None if there is no such file."""
    try:
        found = json.loads(file.read_range(0, 4096))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _wait_for_silence(
    file: BucketPath,
    found: dict[str, Any],
    is_gone: Callable[[dict[str, Any]], bool],
    refusal: Callable[[Mapping[str, Any]], str],
) -> None:
    if is_gone(found):
        return
    print(
        f"stellarbyte: {file} says that another process writes there; waiting up to {SILENT_SECONDS:g} seconds for a "
        "sign of it",
        file=sys.stderr,
    )
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(2.0, REFRESH_SECONDS / 4))
        now = read_holder(file)
        if now is None:
            return
        if now != found:
            raise UserError(refusal(now))
    print("stellarbyte: there was none, so this process takes over", file=sys.stderr)

"""Keeps a second process from writing into a folder that another process is already writing."""

import contextlib
import errno
import functools
import json
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from stellarbyte.bucket_lock import NAME, bucket_lock, read_holder
from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, Place, place

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

# The system's errors if a file system has no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
# With these errors no file can be made in the folder above, and the lock is made in the folder itself.
_NOT_ABOVE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)
_INSIDE = ".stellarbyte.lock"
_MOST_BYTES = 4096
_LONGEST_COMMAND = 200


@contextmanager
def folder_lock(folder: str | Place, doing: str) -> Iterator[Callable[[], None]]:
    """Makes this process the only writer of `folder` inside the block; `doing`, such as "pretrain", is told to others.

    The lock is a file beside the folder, .NAME.lock, so that the folder's content stays as it is, and a folder that is
    renamed into place is protected too. The kernel releases the lock when the process dies, however that happens, and
    on network file systems with locks it holds for every host. If the file system has no locks, the file itself is the
    lock: it is taken over if its process on this host is gone, but never from another host. For a folder in a bucket
    see bucket_lock.py.

    Yields:
        A function that raises UserError once another process has taken the lock over, which can happen in a bucket.

    Raises:
        UserError: another process or thread, named in the sentence, holds the lock; or the lock cannot be made.
    """
    folder = place(folder).resolve()
    if isinstance(folder, BucketPath):
        refusal = functools.partial(_refusal, folder)
        with bucket_lock(folder, _this_process(doing), _is_gone, refusal) as held:
            yield lambda: held.check(refusal)
        return
    for path in _lock_files(folder):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = _take(path, folder, doing)
            break
        except OSError as error:
            if error.errno not in _NOT_ABOVE or path.name == _INSIDE:
                raise UserError(f"{folder} cannot be written: {error.strerror} ({path})") from error
    try:
        yield lambda: None
    finally:
        with contextlib.suppress(OSError):  # a file that stays behind blocks nobody
            path.unlink()
        os.close(lock)


def _take(path: Path, folder: Path, doing: str) -> int:
    """The open lock file, locked. Raises UserError if another holds the lock, OSError if the file cannot be made."""
    while True:
        file, is_new = _open(path)
        try:
            if _hold(file, is_new, path, folder) and _is_at(file, path):
                with contextlib.suppress(OSError):  # the lock is held even on a full disk
                    os.ftruncate(file, 0)
                    os.pwrite(file, json.dumps(_this_process(doing)).encode(), 0)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _open(path: Path) -> tuple[int, bool]:
    """The open lock file, and whether this call has made it."""
    # Anything may exist under this name: opening a pipe must not block, and a link must not be followed.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        file, is_new = os.open(path, flags | os.O_EXCL, 0o644), True
    except FileExistsError:
        file, is_new = os.open(path, flags, 0o644), False
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path} is no regular file, but the lock of {folder_of(path)} has to be there: move it away")
    return file, is_new


def _lock_files(folder: Path) -> tuple[Path, Path]:
    """Where the lock of a folder may be: beside it, or in it where nothing can be made above."""
    return folder.with_name(f".{folder.name}.lock"), folder / _INSIDE


def folder_of(lock: Path) -> Path:
    """The folder that a lock file is for."""
    return lock.parent if lock.name == _INSIDE else lock.with_name(lock.name.removeprefix(".").removesuffix(".lock"))


def lock_holder(folder: str | Place) -> dict[str, Any] | None:
    """What the lock of a folder says of the process that writes there; None if there is no lock. Nothing is locked.

    "gone" is whether that process is known to run no longer, as after a kill, whose lock stays behind. The rest is as
    the process wrote it: "pid", "host", "doing", "started", "command"; all of it may be missing.
    """
    folder = place(folder).resolve()
    if isinstance(folder, BucketPath):
        found = read_holder(folder / NAME)
        return None if found is None else {**found, "gone": _is_gone(found)}
    for path in _lock_files(folder):
        try:
            file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            continue
        try:
            if stat.S_ISREG(os.fstat(file).st_mode):
                content = os.pread(file, _MOST_BYTES, 0)
                holder = json.loads(content)
                return {**holder, "gone": _is_gone(holder)} if isinstance(holder, dict) else {"gone": False}
        except (OSError, ValueError, RecursionError):
            return {"gone": False}  # it is being written
        finally:
            os.close(file)
    return None


def _hold(file: int, is_new: bool, path: Path, folder: Path) -> bool:
    """Whether this process now holds the lock; if not, the caller tries again. Raises UserError if another holds it."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "no locks")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(_refusal(folder, _read(file))) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if is_new:
            return True
        holder = _read(file)
        if not _is_gone(holder):
            remedy = f"; if that process is gone, as this file system has no locks to tell, remove {path}"
            raise UserError(_refusal(folder, holder) + remedy) from None
        path.unlink(missing_ok=True)
        return False
    return True


def _is_at(file: int, path: Path) -> bool:
    """Whether the file is still the one at `path`: the previous holder removes its file at the end."""
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(file), there)


def _this_process(doing: str) -> dict[str, Any]:
    words = [Path(sys.argv[0]).name, *sys.argv[1:]] if sys.argv else []
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": shlex.join(words)[:_LONGEST_COMMAND],
        "doing": doing,
        "started": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "boot": _boot(),
        "born": _born(os.getpid()),
    }


def _read(file: int) -> dict[str, Any]:
    """What the holder has written about itself; empty if that cannot be read."""
    for _ in range(20):  # the holder writes a moment after it has taken the lock
        try:
            holder = json.loads(os.pread(file, _MOST_BYTES, 0))
        except (OSError, ValueError, RecursionError):
            time.sleep(0.01)
            continue
        return holder if isinstance(holder, dict) else {}
    return {}


def _refusal(folder: Place, holder: Mapping[str, Any]) -> str:
    names = ("pid", "host", "doing", "started", "command")
    pid, host, doing, started, command = (_printable(holder.get(name)) for name in names)
    who = f"process {pid} on {host} ({doing} since {started}: {command})" if pid else "another process"
    return f"{folder} is being written by {who}: wait until that has ended, stop it, or choose another folder"


def _printable(value: object) -> str:
    text = "" if value is None else str(value)[:_LONGEST_COMMAND]
    return "".join(character if character.isprintable() else "?" for character in text)


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the holder was a process of this host and is known to run no longer."""
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    if holder.get("boot") != _boot():
        return True
    if sys.platform == "win32":  # os.kill would end the process there
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return holder.get("born") != _born(pid)  # another process may have the number now


def _boot() -> str:
    """An id of this host's present boot; empty if the system does not give one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _born(pid: int) -> str:
    """The time at which a process was started, in the kernel's ticks; empty if the system does not give it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""

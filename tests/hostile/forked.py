"""Runs a command in a forked child of a process that has imported everything: as a user would, in milliseconds."""

import contextlib
import ctypes
import io
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.case import Case, Command, World

# What no refusal comes near, on a machine that is busy with other things as well.
MOST_SECONDS = 150.0
MOST_CPU_SECONDS = 60
MOST_BYTES = 4 << 30

# A child's own exit code where the case could not even be made.
NO_CASE = 99
_NOBODY = 65534


@dataclass
class Ending:
    """How a command ended: its exit code, or minus the signal's number; None where it was ended for taking too long."""

    code: int | None
    out: str
    err: str
    seconds: float
    grown_bytes: int


class Child:
    """A command that runs.

    inside: the folder that another command has left, for the case to go on in; a new one by default.
    """

    def __init__(self, case: Case, base: Path, folder: Path, inside: Path | None = None) -> None:
        self.case, self.folder = case, folder
        self.world = World(base, inside or folder / "in")
        folder.mkdir(parents=True)
        self.world.folder.mkdir(exist_ok=True)
        self._started = time.monotonic()
        self._bytes_before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _be_child(case, self.world, folder)

    def ending(self) -> Ending | None:
        """How it ended; None while it runs."""
        pid, status, usage = os.wait4(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self._started
        if pid == 0 and seconds < MOST_SECONDS:
            return None
        with contextlib.suppress(OSError):  # what it has started, too
            os.killpg(self.pid, signal.SIGKILL)
        if pid == 0:
            _, status, usage = os.wait4(self.pid, 0)
        code = None if pid == 0 else os.waitstatus_to_exitcode(status)
        if code == -signal.SIGXCPU:
            code = None
        paths = [self.folder / name for name in ("out", "err")]  # not there if the case could not even begin
        out, err = (path.read_text("utf-8", "backslashreplace") if path.exists() else "" for path in paths)
        return Ending(code, out, err, seconds, usage.ru_maxrss * 1024 - self._bytes_before)


def _be_child(case: Case, world: World, folder: Path) -> None:
    try:
        os.setsid()
        os.chdir(world.folder)
        _open_files(folder)
        command = case.make(world)
        _prepare(command, world, folder)
        if command.fresh:
            _start_anew(command)
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(NO_CASE)
    from stellarbyte import door

    door.program()


def _open_files(folder: Path) -> None:
    for number, name in ((1, "out"), (2, "err")):
        opened = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = _stream(1, "w", "strict"), _stream(2, "w", "backslashreplace")


def _stream(number: int, mode: str, errors: str, encoding: str = "utf-8") -> Any:
    try:
        return io.open(number, mode, encoding=encoding, errors=errors, closefd=False)  # noqa: UP020
    except OSError:  # closed, which Python makes None
        return None


def _start_anew(command: Command) -> None:
    words = [sys.executable, "-m", *command.program.split(), *map(os.fsencode, command.arguments)]
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    os.execv(sys.executable, words)


def _mount(folder: Path, size: int) -> None:
    """A small disk of this process's own, which goes with it."""
    new_namespace, private = 0x00020000, 1 << 18 | 1 << 14  # CLONE_NEWNS; MS_PRIVATE | MS_REC
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir(exist_ok=True)
    done = libc.unshare(new_namespace) or libc.mount(b"none", b"/", None, private, None)
    if done or libc.mount(b"none", os.fsencode(folder), b"tmpfs", 0, b"size=%d" % size):
        raise OSError(ctypes.get_errno(), "no disk can be mounted")


def _prepare(command: Command, world: World, folder: Path) -> None:
    """Makes this process one that a shell has just started for the command."""
    if command.disk is not None:
        _mount(world.folder / "disk", command.disk)
    os.environ.update(command.environment)
    arguments = [os.fsdecode(word) for word in (*command.program.split(), *command.arguments)]
    sys.argv, sys.orig_argv = arguments, [sys.executable, *arguments]
    (folder / "stdin").write_bytes(command.stdin)
    os.dup2(os.open(folder / "stdin", os.O_RDONLY), 0)
    for number, where in ((1, command.stdout), (2, command.stderr)):
        if where == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif where == "closed":
            os.close(number)
        elif where == "gone":
            reading, writing = os.pipe()
            os.close(reading)
            os.dup2(writing, number)
    encoding = "ascii" if command.ascii else "utf-8"
    sys.stdin = _stream(0, "r", "strict", encoding)
    sys.stdout, sys.stderr = _stream(1, "w", "strict", encoding), _stream(2, "w", "backslashreplace", encoding)
    if command.nobody and os.geteuid() == 0:
        for path in (world.folder, *world.folder.rglob("*")):
            os.chown(path, _NOBODY, _NOBODY, follow_symlinks=False)
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for number, seconds in command.signals:
        _send_later(number, seconds)
    _bound()
    if command.file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command.file_size, command.file_size))


def _send_later(number: int, seconds: float) -> None:
    """A signal from outside after so many seconds: by a process of its own, which the command knows nothing of."""
    target = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        with contextlib.suppress(OSError):
            os.kill(target, number)
        os._exit(0)


def _bound() -> None:
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    most = int(data.split()[1]) * 1024 + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    used = int(sum(os.times()[:2]))
    resource.setrlimit(resource.RLIMIT_CPU, (used + MOST_CPU_SECONDS, used + MOST_CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

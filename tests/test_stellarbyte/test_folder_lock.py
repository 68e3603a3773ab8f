"""One process writes a folder at a time; the lock of a dead one blocks nobody, and no lock stays behind."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock

_HOLD = """
import sys
from stellarbyte.folder_lock import folder_lock
with folder_lock(sys.argv[1], doing="pretrain"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen]:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_another_process_is_refused_by_name_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with another_process(folder) as process:
        with pytest.raises(UserError, match=f"process {process.pid} on {socket.gethostname()} ") as refusal:
            folder_lock(folder, doing="prune").__enter__()
        assert "(pretrain since 2" in str(refusal.value)
        assert "-c" in str(refusal.value)
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".run.lock").exists()  # a dead process leaves its file, but not the lock
    with folder_lock(folder, doing="prune"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_however_the_folder_is_called(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with folder_lock(tmp_path / "run", doing="pretrain"):
        for other in (tmp_path / "link", tmp_path / "run" / ".." / "run", os.path.relpath(tmp_path / "run")):
            with pytest.raises(UserError, match="is being written by process"), folder_lock(other, doing="pretrain"):
                pass


def test_another_thread_is_refused(tmp_path: Path) -> None:
    seen = []

    def enter() -> None:
        try:
            with folder_lock(tmp_path / "run", doing="prepare"):
                seen.append("held")
        except UserError as error:
            seen.append(str(error))

    with folder_lock(tmp_path / "run", doing="prepare"):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in seen[0]


def test_a_folder_that_is_renamed_away_stays_locked(tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir()
    with folder_lock(tmp_path / "hf", doing="to-hf"):
        (tmp_path / "hf").rename(tmp_path / "old")
        with pytest.raises(UserError), folder_lock(tmp_path / "hf", doing="to-hf"):
            pass
        (tmp_path / "old").rename(tmp_path / "hf")
    assert list((tmp_path / "hf").iterdir()) == []


def test_the_lock_lies_inside_where_the_folder_above_takes_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, opening = tmp_path / "run", os.open

    def read_only_above(path: Path, *arguments: int) -> int:
        if Path(path).parent == tmp_path:
            raise OSError(errno.EROFS, "Read-only file system")
        return opening(path, *arguments)

    monkeypatch.setattr(os, "open", read_only_above)
    with folder_lock(folder, doing="pretrain"):
        assert [path.name for path in folder.iterdir()] == [".stellarbyte.lock"]
        with pytest.raises(UserError, match="is being written by"), folder_lock(folder, doing="pretrain"):
            pass
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
def test_what_is_no_lock_file(tmp_path: Path, what: str) -> None:
    lock = tmp_path / ".run.lock"
    {"pipe": lambda: os.mkfifo(lock), "link": lambda: lock.symlink_to("elsewhere"), "folder": lock.mkdir}[what]()
    with pytest.raises(UserError, match=r"\.run\.lock"), folder_lock(tmp_path / "run", doing="pretrain"):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"pid": "\\u001b[31m"}', "[" * 4000])
def test_whatever_the_lock_says(tmp_path: Path, text: str) -> None:
    lock = tmp_path / ".run.lock"
    lock.write_text(text)
    with lock.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError) as refusal, folder_lock(tmp_path / "run", doing="pretrain"):
            pass
    assert "\x1b" not in str(refusal.value)
    assert "is being written by" in str(refusal.value)


class TestWithoutLocks:
    """On a file system that has no locks the file itself is one."""

    @pytest.fixture(autouse=True)
    def no_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)

    def test_a_living_process_is_named_with_the_file_to_remove(self, tmp_path: Path) -> None:
        refused = pytest.raises(UserError, match=rf"process {os.getpid()} .*remove .*\.run\.lock")
        with folder_lock(tmp_path / "run", doing="pretrain"), refused, folder_lock(tmp_path / "run", doing="pretrain"):
            pass
        with folder_lock(tmp_path / "run", doing="pretrain"):
            pass

    @pytest.mark.parametrize("change", [{"boot": "another"}, {"born": "1"}, {"pid": 2**22 + 1}])
    def test_a_dead_process_is_followed(self, tmp_path: Path, change: dict) -> None:
        lock = tmp_path / ".run.lock"
        with folder_lock(tmp_path / "run", doing="pretrain"):
            known = json.loads(lock.read_text())
        lock.write_text(json.dumps(known | change))
        with folder_lock(tmp_path / "run", doing="pretrain"):
            assert json.loads(lock.read_text())["pid"] == os.getpid()

    def test_of_another_host_nothing_is_known(self, tmp_path: Path) -> None:
        lock = tmp_path / ".run.lock"
        lock.write_text(json.dumps({"pid": 5, "host": "elsewhere", "doing": "pretrain"}))
        with pytest.raises(UserError, match="process 5 on elsewhere"), folder_lock(tmp_path / "run", doing="pretrain"):
            pass
        assert lock.exists()

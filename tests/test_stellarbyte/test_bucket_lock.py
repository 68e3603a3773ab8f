"""The lock of a folder in a bucket, over fsspec's file system in memory."""

import json
import os
import threading
from typing import Any

import pytest

from memory_bucket import use_memory
from stellarbyte import bucket_lock
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import place

FOLDER = "gs://runs/run"


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    use_memory(monkeypatch)
    monkeypatch.setattr(bucket_lock, "REFRESH_SECONDS", 0.02)
    monkeypatch.setattr(bucket_lock, "SILENT_SECONDS", 0.5)


def holder() -> dict[str, Any] | None:
    return bucket_lock.read_holder(place(FOLDER) / bucket_lock.NAME)  # type: ignore[arg-type]


def leave(content: dict[str, Any]) -> None:
    (place(FOLDER) / bucket_lock.NAME).write_bytes(json.dumps(content).encode())


def test_a_living_holder_keeps_others_out() -> None:
    with folder_lock(FOLDER, doing="pretrain") as check:
        check()
        with (
            pytest.raises(UserError, match=rf"{FOLDER} is being written by process {os.getpid()} on .*pretrain since"),
            folder_lock(FOLDER, doing="prune"),
        ):
            pytest.fail("there were two")
        assert holder() is not None
    assert holder() is None


def test_a_silent_holder_is_replaced_and_that_is_told(capsys: pytest.CaptureFixture) -> None:
    leave({"pid": 1, "host": "another", "id": "x"})
    with folder_lock(FOLDER, doing="pretrain"):
        pass
    assert "takes over" in capsys.readouterr().err
    leave({"pid": 2**22 + 1, "host": os.uname().nodename, "boot": "another", "id": "x"})
    with folder_lock(FOLDER, doing="pretrain"):
        pass
    assert capsys.readouterr().err == "", "a process of this host that is gone is not waited for"


def test_who_has_lost_the_lock_learns_of_it() -> None:
    with folder_lock(FOLDER, doing="pretrain") as check:
        leave({"pid": 7, "host": "another", "id": "x"})
        for thread in threading.enumerate():
            if thread.name == "bucket lock":
                thread.join(10)  # it ends once it has seen the other
        with pytest.raises(UserError, match="process 7 on another"):
            check()
    assert (holder() or {}).get("id") == "x", "another's lock stays"

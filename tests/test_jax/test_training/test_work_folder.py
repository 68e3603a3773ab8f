"""What a run in a bucket keeps on this machine, and when that is copied."""

from pathlib import Path
from typing import Any

import pytest

from memory_bucket import use_memory
from stellarbyte.bucket_errors import BucketError
from stellarbyte.errors import UserError
from stellarbyte.places import BucketPath, place
from stellarbyte_jax.training.work_folder import WorkFolder


class Checkpointer:
    """One whose last save has failed, or not."""

    def __init__(self, failed: str | None = None) -> None:
        self.failed, self.begun_anew = failed, 0

    def failure(self) -> str | None:
        return self.failed

    def begin_anew(self) -> None:
        self.begun_anew += 1
        self.failed = None


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> BucketPath:
    use_memory(monkeypatch)
    path = place("gs://runs/mine")
    assert isinstance(path, BucketPath)
    return path


def unlocked() -> None:
    pass


def away(monkeypatch: pytest.MonkeyPatch) -> None:
    def upload(self: BucketPath, _: Path) -> None:
        raise BucketError(f"{self} is away")

    monkeypatch.setattr(BucketPath, "upload", upload)


def test_files_go_there_and_come_back(run: BucketPath) -> None:
    said: list[str] = []
    with WorkFolder(run, unlocked) as work:
        assert work.path.name == "mine"
        (work.path / "trackers").mkdir()
        (work.path / "trackers" / "run_id.json").write_text("{}")
        (work.path / "metrics.jsonl").write_text("1\n")
        work.copy(said.append)
        assert (run / "metrics.jsonl").read_bytes() == b"1\n"
        with (work.path / "metrics.jsonl").open("a") as file:
            file.write("2\n")
        assert (run / "metrics.jsonl").read_bytes() == b"1\n"
        assert work.ready_to_save(Checkpointer(), said.append, final=False)  # type: ignore[arg-type]
        assert (run / "metrics.jsonl").read_bytes() == b"1\n2\n"
        (work.path / "last.txt").write_text("3")
    assert not work.path.exists() and (run / "last.txt").exists()
    (run / "checkpoints" / "5" / "big").write_bytes(b"x")
    with WorkFolder(run, unlocked) as work:
        there = {path.relative_to(work.path).as_posix() for path in work.path.rglob("*") if path.is_file()}
        assert there == {"trackers/run_id.json", "metrics.jsonl", "last.txt"}
        assert (work.path / "metrics.jsonl").read_text() == "1\n2\n"
    assert said == []


def test_a_save_waits_for_the_records_before_it(run: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    checkpointer: Any = Checkpointer()
    work = WorkFolder(run, unlocked).__enter__()
    (work.path / "metrics.jsonl").write_text("1\n")
    away(monkeypatch)
    work.copy(said.append)
    assert not work.ready_to_save(checkpointer, said.append, final=False)
    assert not work.ready_to_save(checkpointer, said.append, final=False)
    assert len(said) == 3 and all("training goes on" in line for line in said)
    with pytest.raises(UserError, match=r"gs://runs/mine/metrics\.jsonl is away"):
        work.ready_to_save(checkpointer, said.append, final=False)
    with pytest.raises(UserError, match=r"is away; the files beside the checkpoints are in"):
        work.__exit__(None, None, None)
    assert (work.path / "metrics.jsonl").read_text() == "1\n", "nothing is lost"


def test_a_save_that_failed_is_told_and_the_next_one_tried(run: BucketPath) -> None:
    said: list[str] = []
    checkpointer: Any = Checkpointer("step 5 cannot be saved")
    with WorkFolder(run, unlocked) as work:
        assert work.ready_to_save(checkpointer, said.append, final=False)
        assert checkpointer.begun_anew == 1 and "step 5 cannot be saved" in said[0]
        saved: list[bool] = []
        work.settle(checkpointer, lambda final: saved.append(final))
        assert saved == []
        checkpointer.failed = "step 9 cannot be saved"
        work.settle(checkpointer, lambda final: saved.append(final))
        assert saved == [True]


def test_who_has_lost_the_lock_writes_nothing(run: BucketPath) -> None:
    def lost() -> None:
        raise UserError("another process has it")

    work = WorkFolder(run, lost).__enter__()
    (work.path / "metrics.jsonl").write_text("1\n")
    with pytest.raises(UserError, match="another process has it"):
        work.ready_to_save(Checkpointer(), print, final=False)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="another process has it"):
        work.__exit__(None, None, None)
    assert not (run / "metrics.jsonl").exists()


def test_a_run_on_this_machine_is_its_own_folder(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, unlocked) as work:
        assert work.path == tmp_path
        work.copy(print)
        assert work.ready_to_save(Checkpointer("unseen"), print, final=True)  # type: ignore[arg-type]

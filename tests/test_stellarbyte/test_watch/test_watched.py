"""A run is told as its folder has it: while it is not there, while it trains, and afterwards."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from memory_bucket import use_memory
from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import BucketPath, place
from stellarbyte.watch.children import Children
from stellarbyte.watch.found import check_named, runs_of
from stellarbyte.watch.watched import Watched
from stellarbyte.watch.watcher import Watcher


class Silent(Children):
    """Answers at once, with what it was given."""

    def __init__(self, answer: Any = None, error: str | None = None) -> None:
        super().__init__({})
        self.asked: list[Sequence[str]] = []
        self.answer, self.error = json.dumps(answer), error

    def begin(self, words: Sequence[str], done: Any) -> None:
        self.asked.append(words)
        done(self.answer, self.error)


def write(run: Path, steps: range, **config: Any) -> Path:
    run.mkdir(parents=True, exist_ok=True)
    training = {"max_steps": 40, "eval_steps": 10, **config}
    (run / "config.yaml").write_text(json.dumps({"training": training}))
    with (run / "metrics.jsonl").open("a") as file:
        for step in steps:
            record = {"step": step, "loss": 8 / step, "tokens": 10, "step_seconds": 0.25, "tokens_per_second": 40.0}
            file.write(json.dumps(record) + "\n")
            if step % 10 == 0:
                file.write(json.dumps({"step": step, "validation_loss": 8 / step + 0.1}) + "\n")
    return run


def told(run: Watched) -> Mapping[str, Any]:
    while run.refresh():
        pass
    return run.summary()


def test_from_before_its_start_to_its_end(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run = Watched(run_dir, "run", Silent())
    assert told(run)["state"] == "waiting" and told(run)["count"] == 0
    with folder_lock(run_dir, "pretrain"):
        write(run_dir, range(1, 1))
        assert told(run)["state"] == "starting"
        write(run_dir, range(1, 21))
        found = told(run)
        assert found["state"] == "running" and found["step"] == 20 and found["max_steps"] == 40
        assert found["seconds_left"] == 5.0 and found["loss"] == 0.4 and found["tokens"] == 200
        assert found["best_validation"] == {"step": 20, "loss": 0.5}
        old = time.time() - 3600
        for name in ("metrics.jsonl", "config.yaml"):
            os.utime(run_dir / name, (old, old))
        fresh = Watched(run_dir, "run", Silent())
        told(fresh)
        assert told(fresh)["state"] == "stuck" and told(fresh)["silent_seconds"] >= 3599
    assert told(run)["state"] == "stopped" and told(run)["seconds_left"] is None
    write(run_dir, range(21, 41))
    assert told(run)["state"] == "done"


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run", range(1, 5))
    lock = tmp_path / ".run.lock"
    lock.write_text(json.dumps({"pid": 1, "host": socket.gethostname(), "boot": "another"}))
    before = lock.stat().st_mtime_ns
    assert told(Watched(run_dir, "run", Silent()))["state"] == "failed"
    assert lock.stat().st_mtime_ns == before and lock.read_text(), "a lock is looked at and left alone"


def test_checkpoints_and_why_they_are_kept(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run", range(1, 21))
    for name in ("10", "20", "30.orbax-checkpoint-tmp-1", "7x", "007"):
        (run_dir / "checkpoints" / name).mkdir(parents=True)
    (run_dir / "checkpoints" / "20" / "data").write_bytes(b"x" * 1000)
    saved = {"commit_timestamp_nsecs": 1_700_000_000_000_000_000}
    (run_dir / "checkpoints" / "20" / "_CHECKPOINT_METADATA").write_text(json.dumps(saved))
    children = Silent({"checkpoints": [{"step": 10, "kept_by": []}, {"step": 20, "kept_by": ["newest 2"]}]})
    run = Watched(run_dir, "run", children)
    assert told(run)["newest_checkpoint"] == 20
    first, second = run.details()["checkpoints"]
    assert (first["step"], first["kept_by"]) == (10, []) and first["validation_loss"] == pytest.approx(0.9)
    assert (second["step"], second["kept_by"], second["saved_at"]) == (20, ["newest 2"], 1_700_000_000.0)
    assert second["bytes"] == 1000 + len(json.dumps(saved))
    told(run)
    assert children.asked == [["checkpoints", str(run_dir), "--json"]], "once for the same checkpoints"
    failing = Watched(run_dir, "run", Silent(error="jax is not installed"))
    told(failing)
    assert [each["kept_by"] for each in failing.details()["checkpoints"]] == [None, None]


def test_a_fine_tuning_run(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run", range(1, 3))
    (run_dir / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    children = Silent()
    run = Watched(run_dir, "run", children)
    assert told(run)["newest_checkpoint"] == 2 and not children.asked
    assert told(run)["state"] == "stopped"
    (run_dir / "summary.json").write_text("{}")
    assert told(run)["state"] == "done"


def test_what_cannot_be_read_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run", range(1, 3))
    (run_dir / "config.yaml").write_text("training: [")
    run = Watched(run_dir, "\x1b[31mrun", Silent())
    found = told(run)
    assert "config.yaml" in found["problem"] and found["step"] == 2 and found["name"] == "\\x1b[31mrun"


def test_a_log(tmp_path: Path) -> None:
    run_dir = write(tmp_path / "run", range(1, 3))
    (run_dir / "log.txt").write_text("a\n" * 300 + "2026 error 0: ended: \x1b[2Jno room\n")
    run = Watched(run_dir, "run", Silent())
    assert told(run)["words"] == "\\x1b[2Jno room"
    assert len(run.details()["log"]) == 200


def test_runs_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "deep/b", "deep/er/c", ".hidden"):
        write(tmp_path / name, range(1, 2))
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    assert runs_of(tmp_path) == [tmp_path / "a", tmp_path / "deep" / "b"]
    assert runs_of(tmp_path / "a") == [tmp_path / "a"]
    assert runs_of(tmp_path / "empty") == [tmp_path / "empty"] and runs_of(tmp_path / "later") == [tmp_path / "later"]


def test_a_folder_in_which_runs_begin_later(tmp_path: Path) -> None:
    with Children({}) as children:
        watcher = Watcher([tmp_path], children)
        watcher.look()
        assert {number: run.name for number, run in watcher.runs().items()} == {0: tmp_path.name}
        write(tmp_path / "x", range(1, 2))
        watcher._searched_at = -1e9
        watcher.look()
        assert {number: run.name for number, run in watcher.runs().items()} == {1: "x"}, "a number is never used again"
        write(tmp_path / "a", range(1, 2))
        watcher._searched_at = -1e9
        watcher.look()
        assert {number: run.name for number, run in watcher.runs().items()} == {1: "x", 2: "a"}


def test_a_run_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    use_memory(monkeypatch)
    base = place("s3://runs/folder")
    assert isinstance(base, BucketPath)
    assert runs_of(base) == [base]
    run_dir = base / "one"
    check_named(run_dir)
    run = Watched(run_dir, "one", Silent({"checkpoints": [{"step": 2, "kept_by": ["newest 2"]}]}))
    assert told(run)["state"] == "waiting"
    (run_dir / "config.yaml").write_bytes(b"training: {max_steps: 40}")
    content = b'{"step": 1, "loss": 2.0, "tokens": 5}\n{"step": 2, "loss": 1.0, "tokens": 5}\n'
    (run_dir / "metrics.jsonl").write_bytes(content + b'{"st')
    with folder_lock(run_dir, "pretrain"):
        found = told(run)
        assert (found["state"], found["step"], found["max_steps"], found["tokens"]) == ("running", 2, 40, 10)
    (run_dir / "metrics.jsonl").write_bytes(content + b'{"step": 3, "loss": 0.5, "tokens": 5}\n')
    found = told(run)
    assert (found["state"], found["step"], found["generation"]) == ("stopped", 3, 0), "what is new was read"
    (run_dir / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2.0, "tokens": 5}\n')
    assert (told(run)["step"], told(run)["generation"]) == (1, 1)
    (run_dir / "checkpoints" / "2" / "params").write_bytes(b"12345")
    assert told(run)["newest_checkpoint"] is None, "it is being written"
    (run_dir / "checkpoints" / "2" / "commit_success.txt").write_bytes(b"")
    assert told(run)["newest_checkpoint"] == 2 and runs_of(base) == [run_dir]
    (row,) = run.details()["checkpoints"]
    assert (row["bytes"], row["saved_at"], row["kept_by"]) == (5, None, ["newest 2"])


def test_nothing_is_read_while_nobody_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stellarbyte.watch.watcher._SECONDS_UNWATCHED", 0.2)
    monkeypatch.setattr("stellarbyte.watch.watcher._SECONDS_BETWEEN", 0.01)
    looks: list[float] = []
    with Children({}) as children:
        watcher = Watcher([write(tmp_path / "run", range(1, 2))], children)
        monkeypatch.setattr(watcher, "look", lambda: looks.append(time.monotonic()) or False)
        with watcher:
            time.sleep(0.6)
            count = len(looks)
            time.sleep(0.2)
            assert 1 < count == len(looks)
            watcher.runs()
            time.sleep(0.1)
            assert len(looks) > count


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("file", None, "is a file: name a run's folder"),
        ("nowhere/run", None, "is not there, nor is the folder above it"),
        ("hf", "config.json", "is a model, which does not train"),
        ("peft", "adapter_config.json", "is an adapter, which does not train"),
        ("shards", "manifest.json", "is token shards, which does not train"),
    ],
)
def test_what_is_no_run(name: str, content: str | None, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    if content is not None:
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text("{}")
    with pytest.raises(UserError, match=words):
        check_named(tmp_path / name)

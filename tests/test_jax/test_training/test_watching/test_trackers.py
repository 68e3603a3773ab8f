"""Trackers get what metrics.jsonl gets; whatever becomes of them, training goes on."""

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.training.pretrain import pretrain
from stellarbyte_jax.training.watching.metrics import MetricsLog
from stellarbyte_jax.training.watching.trackers import trackers as module
from stellarbyte_jax.training.watching.trackers.trackers import Trackers
from test_jax.runs import losses, records

RECORDS: list[dict[str, Any]] = [
    {"step": 0, "validation_loss": 3.5},
    {"step": 1, "loss": 3.0, "tokens_per_second": None, "expert_load": [0.25, 0.75], "compile_cache": "miss"},
    {"step": 2, "loss": 2.5, "grad_norm": 1.0},
]
FIGURES = [
    (0, "validation/loss", 3.5),
    (1, "train/loss", 3.0),
    (1, "train/expert_load/0", 0.25),
    (1, "train/expert_load/1", 0.75),
    (2, "train/loss", 2.5),
    (2, "train/grad_norm", 1.0),
]

# A tracker that writes what it is told into a file beside its log.
WRITER = """
import json, sys
first = json.loads(sys.stdin.readline())
with open(first["run_dir"] + "/tracked.jsonl", "a") as file:
    file.write(json.dumps(first) + "\\n")
    for line in sys.stdin:
        file.write(line)
"""


@pytest.fixture
def tracker_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has each tracker run this Python code instead."""

    def runs(code: str) -> None:
        monkeypatch.setattr(module, "_command", lambda _: [sys.executable, "-c", code])
        monkeypatch.setattr(module, "check_installed", lambda _: None)

    return runs


def track(run_dir: Path, first_step: int = 0, *, records: list[dict[str, Any]] = RECORDS) -> list[str]:
    """The warnings of a run with these records."""
    trackers = Trackers(("tensorboard",), "tests", run_dir, {"seed": 0}, first_step)
    trackers.open()
    for record in records:
        trackers.record(record)
    trackers.close()
    return trackers.warnings()


def told(run_dir: Path) -> Iterator[dict[str, Any]]:
    return map(json.loads, (run_dir / "tracked.jsonl").read_text().splitlines())


def test_what_a_tracker_is_told(tracker_runs: Callable, tmp_path: Path) -> None:
    tracker_runs(WRITER)
    assert track(tmp_path) == []
    first, *rest = told(tmp_path)
    assert first == {
        "run_dir": str(tmp_path),
        "project": "tests",
        "run_id": first["run_id"],
        "config": {"seed": 0},
        "first_step": 0,
    }
    found = [(record["step"], name, value) for record in rest for name, value in record["figures"].items()]
    assert found == FIGURES
    assert track(tmp_path, 2, records=[]) == []
    *_, again = told(tmp_path)
    assert (again["first_step"], again["run_id"]) == (2, first["run_id"]), "the run keeps its id"


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("import sys; sys.stdin.readline(); raise ValueError('no network')", "has failed (ValueError: no network; "),
        ("raise SystemExit(0)", "has ended (see "),
        ("import os; os.kill(os.getpid(), 9)", "has ended (see "),
        ("import sys; sys.stdin.read(); raise OSError('no space')", "has failed (OSError: no space; "),
    ],
)
def test_one_that_fails_is_told_once(code: str, complaint: str, tracker_runs: Callable, tmp_path: Path) -> None:
    tracker_runs(code)
    many = [{"step": step, "loss": 1.0, "text": "x" * 1000} for step in range(2000)]
    (warning,) = track(tmp_path, records=[record | {f"n{i}": i for i in range(20)} for record in many])
    assert warning.startswith(f"warning: tensorboard {complaint}")
    assert warning.endswith("; training goes on, and metrics.jsonl has all figures")


def test_one_that_hangs_holds_nothing_up(
    tracker_runs: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while the run trains, when its pipe is full, nor at the end for long."""
    monkeypatch.setattr(module, "_LAST_WORDS", 0.2)
    tracker_runs("import signal; signal.pause()")
    trackers = Trackers(("tensorboard",), "tests", tmp_path, {}, 0)
    trackers.open()
    for step in range(5000):
        trackers.record({"step": step, "loss": 1.0})
    trackers.close()
    (warning,) = trackers.warnings()
    assert "has not sent everything after 0.2 seconds and goes on in the background" in warning
    monkeypatch.setattr(module, "_MOST_WAITING", 1 << 20)
    late = Trackers(("tensorboard",), "tests", tmp_path, {}, 0)
    late.open()
    for step in range(50_000):
        late.record({"step": step, "loss": 1.0})
    late.close()
    assert [warning.partition("; ")[0] for warning in late.warnings()] == [
        "warning: tensorboard is 1 MiB of records behind and gets no more"
    ]
    for each in (trackers, late):
        os.kill(each._children[0]._process.pid, signal.SIGKILL)
        each._children[0]._process.wait()


def test_the_log_hands_on_what_it_writes(
    tracker_runs: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker_runs(WRITER)
    with MetricsLog(tmp_path, 0, 2, trackers=Trackers(("tensorboard",), "tests", tmp_path, {}, 0)) as log:
        log.validation(0, {"loss": 3.5})
        log.train(1, {"loss": 3.0, "tokens": 8})
    tracked = [(record["step"], record["figures"]) for record in told(tmp_path) if "step" in record]
    assert [step for step, _ in tracked] == [0, 1]
    assert tracked[0][1]["validation/loss"] == 3.5 and tracked[1][1]["train/loss"] == 3.0

    tracker_runs("raise ValueError('gone')")
    with MetricsLog(tmp_path, 1, 2, trackers=Trackers(("tensorboard",), "tests", tmp_path, {}, 1)) as log:
        log.train(2, {"loss": 2.0, "tokens": 8})
    assert capsys.readouterr().out.count("warning: tensorboard has failed (ValueError: gone; ") == 1
    assert losses(tmp_path) == [3.0, 2.0]


@pytest.mark.usefixtures("one_device")
def test_a_tracker_that_is_not_installed_is_refused_at_once(
    run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    config = run_config(training={"report_to": ("wandb",)})
    with pytest.raises(UserError, match=r"report_to wandb needs wandb, .*: pip install 'stellarbyte\[wandb\]'"):
        pretrain(config)
    assert not Path(config.output_dir).exists()


TRACKERS = ["tensorboard", "wandb", "swanlab", "trackio"]


@pytest.mark.long
@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.usefixtures("one_device")
def test_a_run_with_each_of_them_offline(
    name: str,
    run_config: Callable[..., RunConfig],
    disturb: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Interrupted, and gone on with: the run is one, in the tracker as well."""
    pytest.importorskip(module.LIBRARIES[name])  # type: ignore[index]
    for variable, value in {
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(variable, value)
    config = run_config(training={"report_to": (name,), "max_steps": 6})
    disturb(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert not pretrain(config)
    assert pretrain(config)
    assert "warning" not in capsys.readouterr().out
    run = Path(config.output_dir)
    expected = {record["step"]: record["loss"] for record in records(run) if "loss" in record}
    assert TRACKED[name](run, tmp_path) == pytest.approx(expected, rel=1e-6)


def tensorboard_losses(run: Path, _: Path) -> dict[int, float]:
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for path in sorted((run / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                if value.tag == "train/loss":
                    found[event.step] = value.simple_value
    return found


def wandb_losses(run: Path, _: Path) -> dict[int, float]:
    from wandb.proto.wandb_internal_pb2 import Record

    found = {}
    for path in sorted((run / "wandb").glob("offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()[7:]):
            items = {item.key or ".".join(item.nested_key): item for item in Record.FromString(data).history.item}
            if "train/loss" in items:
                found[int(items["step"].value_json)] = float(items["train/loss"].value_json)
    return found


def leveldb_records(content: bytes, place: int = 7) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, whose first block begins `place` bytes before the content."""
    record = b""
    while len(content) >= 7:
        room = 32768 - place % 32768
        if room < 7:
            content, place = content[room:], place + room
            continue
        size, kind = int.from_bytes(content[4:6], "little"), content[6]
        record += content[7 : 7 + size]
        content, place = content[7 + size :], place + 7 + size
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def trackio_losses(_: Path, tmp_path: Path) -> dict[int, float]:
    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute("select step, metrics from metrics").fetchall()
    return {step: found["train/loss"] for step, text in rows if "train/loss" in (found := json.loads(text))}


def swanlab_losses(run: Path, _: Path) -> dict[int, float]:
    """Its files have a format of their own: that each step's loss is in there must do."""
    content = b"".join(path.read_bytes() for path in (run / "swanlab").glob("run-*/*.swanlab"))
    assert content.count(b"train/loss") >= 6
    return {record["step"]: record["loss"] for record in records(run) if "loss" in record}


TRACKED: dict[str, Callable[[Path, Path], dict[int, float]]] = {
    "tensorboard": tensorboard_losses,
    "wandb": wandb_losses,
    "swanlab": swanlab_losses,
    "trackio": trackio_losses,
}

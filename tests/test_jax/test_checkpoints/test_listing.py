"""What `stellarbyte checkpoints` tells is so, damage of every kind is found, and what is needed is not deleted."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stellarbyte.door import main
from stellarbyte.folder_lock import folder_lock
from stellarbyte_jax.checkpoints.checkpoint import checkpoint_steps
from stellarbyte_jax.checkpoints.needed import needed_by, note_needed
from test_jax.runs import records
from test_jax.test_checkpoints.test_checkpoint import biggest, delete, flip, halve


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """Its checkpoints are of steps 10 and 12; it was validated at 0, 6 and 12."""
    leave_out = shutil.ignore_patterns("needed_by")  # other tests train adapters on it
    return Path(shutil.copytree(finished_run, tmp_path / "run", ignore=leave_out))


def listed(run: Path, capsys: pytest.CaptureFixture[str], *options: str, code: int = 0) -> dict:
    assert main(["checkpoints", str(run), "--json", *options]) == code
    return json.loads(capsys.readouterr().out)


def refused(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["checkpoints", str(run), *options]) == 2
    return capsys.readouterr().err


def test_each_is_told_of(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()
    (run / "checkpoints" / "9.broken").mkdir()
    shutil.copytree(run / "checkpoints" / "10", run / "checkpoints" / "5")
    shutil.copytree(run / "checkpoints" / "10", run / "checkpoints" / "6")
    note_needed(run, 5, run / "adapters")
    os.utime(run / "checkpoints" / "12", (0, 0))
    found = listed(run, capsys)
    assert [each["step"] for each in found["checkpoints"]] == [5, 6, 10, 12]
    kept = [each["kept_by"] for each in found["checkpoints"]]
    assert kept == [["another run needs it"], [], ["newest 2"], ["newest 2"]]
    losses = {record["step"]: record["validation_loss"] for record in records(run) if "validation_loss" in record}
    assert [each["metrics"].get("validation_loss") for each in found["checkpoints"]] == [
        None, losses[6], None, losses[12],
    ]  # fmt: skip
    for each in found["checkpoints"]:
        files = (run / "checkpoints" / str(each["step"])).rglob("*")
        assert each["bytes"] == sum(path.stat().st_size for path in files if path.is_file())
        assert 0 <= each["age_seconds"] < 10_000 and each["damage"] is None
    assert list(found["beside"]) == ["11.orbax-checkpoint-tmp", "9.broken"]
    assert "being written" in found["beside"]["11.orbax-checkpoint-tmp"]

    assert main(["checkpoints", str(run)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["step", "age", "size", "loss", "bits/byte", "kept", "as"]
    assert lines[1].endswith("nothing: the next save deletes it") and f"{losses[6]:.4f}" in lines[1]
    assert lines[3].lstrip().startswith("12 ") and lines[3].endswith("newest 2")
    assert lines[4].startswith("beside them 11.orbax-checkpoint-tmp: being written")


@pytest.mark.parametrize("damage", [delete, halve, flip])
@pytest.mark.parametrize(
    ("victim", "words"),
    [
        (lambda step: biggest(step / "params"), "params: "),
        (lambda step: biggest(step / "opt_state"), "opt_state: "),
        (lambda step: step / "params" / "manifest.ocdbt", "params: "),
        (lambda step: step / "opt_state" / "_METADATA", "opt_state: "),
        (lambda step: step / "metadata" / "metadata", ""),
    ],
    ids=["params", "opt_state", "manifest", "array list", "metadata"],
)
def test_damage_is_found(
    run: Path,
    capfd: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    victim: Callable[[Path], Path],
    words: str,
) -> None:
    damage(victim(run / "checkpoints" / "10"))
    found = listed(run, capfd, "--verify", code=1)
    first, second = (each["damage"] for each in found["checkpoints"])
    assert first.startswith(words) and "\n" not in first and second is None
    assert checkpoint_steps(run) == [10, 12], "nothing is moved"


def test_what_is_whole_is_said_to_be(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checkpoints", str(run), "--verify"]) == 0
    assert capsys.readouterr().out.count("  whole  ") == 2


def test_one_is_deleted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(run, capsys, "--delete", "12")
    assert [each["step"] for each in found["checkpoints"]] == [10]
    assert checkpoint_steps(run) == [10]
    assert "no checkpoint of that step, only of 10" in refused(run, capsys, "--delete", "12")
    assert "it is the run's only checkpoint" in refused(run, capsys, "--delete", "10")
    assert main(["checkpoints", str(run), "--delete", "10", "--force"]) == 0
    assert capsys.readouterr().out == "no checkpoint of a pretraining run\n"


def test_what_adapters_stand_on_or_a_run_writes_is_not_deleted(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note_needed(run, 10, run.parent / "adapters")
    sentence = refused(run, capsys, "--delete", "10")
    assert f"the adapters or students in {run.parent / 'adapters'} need this checkpoint" in sentence
    with folder_lock(run, doing="pretrain"):
        for options in (("--delete", "12"), ("--delete", "12", "--force")):
            assert f"{run} is being written by process" in refused(run, capsys, *options)
    assert checkpoint_steps(run) == [10, 12]
    assert main(["checkpoints", str(run), "--delete", "10", "--force"]) == 0
    assert checkpoint_steps(run) == [12] and needed_by(run) == {}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [(("--delete", "x"), "--delete: invalid int value: 'x'"), (("--delete", "3", "--verify"), "not allowed with")],
)
def test_options_that_make_no_sense(
    options: tuple[str, ...], sentence: str, finished_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["checkpoints", str(finished_run), *options])
    assert sentence in capsys.readouterr().err
    assert "--force is for --delete" in refused(finished_run, capsys, "--force")


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert f"RUN_DIR {tmp_path} holds no checkpoints" in refused(tmp_path, capsys)

"""A save that is given up leaves nothing half-written, and what is deleted is deleted whole or not at all."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint._src.checkpointers import async_checkpointer

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, checkpoint_steps, load_params
from stellarbyte_jax.checkpoints.folders import delete_whole
from stellarbyte_jax.config import CheckpointConfig

ARRAYS = {"a": np.arange(6, dtype=np.float32)}


def names(run: Path) -> list[str]:
    return sorted(entry.name for entry in (run / "checkpoints").iterdir())


def test_a_save_that_is_given_up_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = async_checkpointer._on_commit_callback
    written, go_on = threading.Event(), threading.Event()

    def slow(*arguments: object) -> None:
        written.set()
        go_on.wait()
        commit(*arguments)  # type: ignore[arg-type]

    checkpointer = Checkpointer(tmp_path, CheckpointConfig())
    assert checkpointer.give_up() == "no checkpoint is there"
    checkpointer.save(1, ARRAYS, None, RunMetadata({}, {}))
    checkpointer.wait()
    monkeypatch.setattr(async_checkpointer, "_on_commit_callback", slow)
    checkpointer.save(2, ARRAYS, None, RunMetadata({}, {}))
    assert written.wait(60)
    assert names(tmp_path) == ["1", "2.orbax-checkpoint-tmp"]
    assert checkpointer.give_up() == "the checkpoint of step 1 stands"
    assert names(tmp_path) == ["1"]
    go_on.set()  # the process would have ended by now; if it has not, Orbax must not make a checkpoint of the rest
    with pytest.raises(UserError, match=r"the checkpoint of step 2 cannot be saved: .*; that of step 1 is intact"):
        checkpointer.close()
    assert names(tmp_path) == ["1"]
    assert load_params(tmp_path)[2] == 1


def test_a_deletion_that_is_cut_short_leaves_no_half_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, ARRAYS, None, RunMetadata({}, {}))
    remove = shutil.rmtree
    with monkeypatch.context() as patch:

        def cut_short(folder: Path, ignore_errors: bool) -> None:
            if folder.exists():
                remove(folder / "params", ignore_errors)
                raise KeyboardInterrupt

        patch.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            delete_whole(tmp_path / "checkpoints" / "1")
    assert checkpoint_steps(tmp_path) == [2]
    with Checkpointer(tmp_path, CheckpointConfig()) as checkpointer:  # the next run clears the rest away
        checkpointer.save(3, ARRAYS, None, RunMetadata({}, {}))
    assert names(tmp_path) == ["2", "3"]
    with pytest.raises(UserError, match="checkpoints/1 cannot be deleted: No such file or directory"):
        delete_whole(tmp_path / "checkpoints" / "1")

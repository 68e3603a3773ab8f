"""What a checkpoint says of itself is checked, for it may be damaged or a stranger's."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import Checkpointer, RunMetadata, load_metadata, load_params
from stellarbyte_jax.checkpoints.metadata import Base, GuardState, read_metadata
from stellarbyte_jax.config import CheckpointConfig

METADATA = RunMetadata(
    {"model": {"rms_norm_eps": 1e-05}, "lora": {"r": 2}}, {"tokenizer.json": '{"é": 1}'}, {"step": 3}, Base("x", 1, "f")
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved") / "run"
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"a": np.arange(6, dtype=np.float32)}, None, METADATA)
    return run


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def file_of(run: Path, step: int = 2) -> Path:
    return run / "checkpoints" / str(step) / "metadata" / "metadata"


def test_it_comes_back(run: Path) -> None:
    assert load_metadata(run) == (METADATA, 2)


def test_what_a_run_remembers_of_bad_steps_comes_back_and_nothing_is_written_of_nothing(run: Path) -> None:
    guard = GuardState(rows_left_out=8, skipped_in_a_row=1, recent_losses=(0.1, float(np.float32(1 / 3))))
    with Checkpointer(run, CheckpointConfig()) as checkpointer:
        checkpointer.save(3, {"a": np.zeros(1, np.float32)}, None, dataclasses.replace(METADATA, guard=guard))
    assert load_metadata(run)[0].guard == guard
    assert "guard" not in json.loads(file_of(run).read_text("utf-8"))


def test_every_flipped_bit_is_found_and_an_older_checkpoint_taken(run: Path) -> None:
    path = file_of(run)
    content = path.read_bytes()
    unseen = []
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            if read_metadata(path.parents[1]).metadata != METADATA or json.loads(damaged) != json.loads(content):
                unseen.append(place)
        except ValueError:
            continue
    assert unseen == []
    path.write_bytes(content.replace(b"1e-05", b"1e-01"))
    assert load_metadata(run)[1] == 1
    with pytest.raises(UserError, match=r"2 cannot be read \(.+\): choose another step \(1\)"):
        load_params(run, 2)


def test_a_checkpoint_of_an_earlier_version_is_read_with_a_warning(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(file_of(run).read_text("utf-8"))
    del content["sha256"], content["data"]
    file_of(run).write_text(json.dumps(content))
    assert load_params(run)[1:] == (METADATA, 2)
    assert "was saved by an earlier version, without a checksum" in capsys.readouterr().err


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        *(put("config", value) for value in (None, [], "x")),
        *(put("tokenizer_files", value) for value in (None, [], {"tokenizer.json": 3}, {"../evil.txt": "x"}, {"": ""})),
        *(put("tokenizer_files", {"tokenizer.json": "{}", name: "x"}) for name in ("config.json", "modeling.py")),
        *(put("data_position", value) for value in (None, 3)),
        *(put("base", value) for value in ([], {"run_dir": 3}, {"run_dir": "x", "step": "1", "fingerprint": "f"})),
        *(put("data", value) for value in ([], {}, {"kind": "text"}, "x")),
        *(put("guard", value) for value in ([], {"rows_left_out": -1}, {"recent_losses": ["x"]}, {"rows": 1})),
        *(
            put("checksums", value)
            for value in (None, [], {}, {"params": None}, {"params": {"a": "1"}}, {"params": {}})
        ),
        *(put("checksums", {"params": {"a": 1}, name: {}}) for name in ("opt", "../params", "")),
        lambda content: content.pop("config"),
        lambda content: content.pop("checksums"),
        lambda content: content["config"].pop("lora"),
    ],
)
def test_metadata_of_the_wrong_form_is_a_broken_checkpoint(run: Path, change: Any) -> None:
    content = json.loads(file_of(run).read_text("utf-8"))
    del content["sha256"]
    change(content)
    file_of(run).write_text(json.dumps(content))
    assert load_params(run)[2] == 1


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"{", b"\xff{}", b"[" * 100_000, b'{"config": ' + b"9" * 20_000 + b"}", b"null"]
)
def test_what_is_no_json_object_is_a_broken_checkpoint(run: Path, content: bytes) -> None:
    file_of(run).write_bytes(content)
    assert load_params(run)[2] == 1
    shutil.rmtree(run / "checkpoints" / "1")
    with pytest.raises(UserError, match="none of its checkpoints can be read"):
        load_params(run)

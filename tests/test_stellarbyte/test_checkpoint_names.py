"""A checkpoint's folder tells its step, when it was whole, and its size; other folders are none."""

import json
from pathlib import Path

import pytest

from stellarbyte.checkpoint_names import committed_at, size_of, step_of


@pytest.mark.parametrize("name", ["0", "5", "123456789012345678"])
def test_names_of_checkpoints(name: str) -> None:
    assert (
        step_of(name) == step_of(name, finetuning=True) == step_of(f"checkpoint-{name}", finetuning=True) == int(name)
    )
    assert step_of(f"checkpoint-{name}") is None


@pytest.mark.parametrize(
    "name", ["", "05", "-1", "5.orbax-checkpoint-tmp", "5.broken", "1234567890123456789", "٣", "best"]
)
def test_other_names(name: str) -> None:
    assert step_of(name) is step_of(name, finetuning=True) is step_of(f"checkpoint-{name}", finetuning=True) is None


@pytest.mark.parametrize(
    ("noted", "seconds"), [(1_700_000_000_500_000_000, 1_700_000_000.5), ("now", None), (-1, None), (2**63, None)]
)
def test_time_and_size(noted: object, seconds: float | None, tmp_path: Path) -> None:
    assert committed_at(tmp_path) is None and size_of(tmp_path) == 0
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "d").write_bytes(b"12345")
    note = json.dumps({"commit_timestamp_nsecs": noted})
    (tmp_path / "_CHECKPOINT_METADATA").write_text(note)
    assert committed_at(tmp_path) == seconds
    assert size_of(tmp_path) == 5 + len(note)

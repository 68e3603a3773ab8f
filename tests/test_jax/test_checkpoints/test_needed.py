"""A run knows which of its checkpoints other runs need, whatever happens to the notes."""

from pathlib import Path

import pytest

from stellarbyte_jax.checkpoints.needed import forget_needed, needed_by, note_needed


def test_notes_are_made_once_read_and_forgotten(tmp_path: Path) -> None:
    assert needed_by(tmp_path) == {}
    for adapters in ("a", "b", "a"):
        note_needed(tmp_path, 12, tmp_path / adapters)
    note_needed(tmp_path, 0, tmp_path / "c")
    assert {step: sorted(folders) for step, folders in needed_by(tmp_path).items()} == {
        0: [str(tmp_path / "c")],
        12: [str(tmp_path / "a"), str(tmp_path / "b")],
    }
    forget_needed(tmp_path, 12)
    assert list(needed_by(tmp_path)) == [0]


def test_a_note_that_was_damaged_still_keeps_its_checkpoint(tmp_path: Path) -> None:
    note_needed(tmp_path, 7, tmp_path / "a")
    (note,) = (tmp_path / "needed_by").iterdir()
    note.write_bytes(b"\xff{")
    (tmp_path / "needed_by" / "notes.txt").write_text("somebody else's")
    assert needed_by(tmp_path) == {7: [f"a run that {note} no longer names"]}


def test_a_folder_that_cannot_be_written_is_warned_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "needed_by").write_text("a file")
    note_needed(tmp_path, 7, tmp_path / "a")
    warning = capfd.readouterr().err
    assert warning.startswith("stellarbyte: warning: ") and warning.count("\n") == 1
    assert "from deleting its checkpoint of step 7" in warning

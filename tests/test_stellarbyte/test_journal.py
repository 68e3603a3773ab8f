"""What a command has done is known to the same command alone, and half a note is none."""

from pathlib import Path

import pytest

from stellarbyte.journal import NAME, Journal, can_go_on

TASK = {"task": "to-hf", "of": "a"}


def test_the_same_task_goes_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TASK)
    assert not can_go_on(tmp_path, TASK), "nothing is done yet"
    journal.note("one", 1)
    journal.note("two", "é")
    assert can_go_on(tmp_path, TASK)
    assert Journal(tmp_path, TASK).done == {"one": 1, "two": "é"}
    assert not can_go_on(tmp_path, TASK | {"of": "b"})
    assert Journal(tmp_path, TASK | {"of": "b"}).done == {}
    assert not can_go_on(tmp_path, TASK), "the other task has begun anew"


def test_a_note_that_was_being_written_is_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path, TASK)
    journal.note("one", 1)
    journal.note("two", 2)
    text = (tmp_path / NAME).read_text()
    (tmp_path / NAME).write_text(text[:-3])
    assert Journal(tmp_path, TASK).done == {"one": 1}


@pytest.mark.parametrize(
    "text", ["", "[]\n", "null\n3\n", "[" * 100_000 + "\n", '{"task": "to-hf", "of": "a"}\n{"x": 1}\n']
)
def test_something_else_of_this_name_is_no_journal(tmp_path: Path, text: str) -> None:
    (tmp_path / NAME).write_text(text)
    assert not can_go_on(tmp_path, TASK)
    assert Journal(tmp_path, TASK).done == {}

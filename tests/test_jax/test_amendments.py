"""A run's record of its amendments: what is written is read again, and nothing of it is lost."""

from pathlib import Path
from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte.info import info
from stellarbyte_jax.amendments import AMENDMENTS, Amendment, append_amendment, read_amendments


def amendment(number: int = 1, step: int = 12, **fields: Any) -> Amendment:
    shape: dict[str, Any] = {
        "date": "2026-11-30T08:00:00+00:00",
        "changes": {"training.max_steps": (12, 24), "optimizer.learning_rate": (0.01, 0.02)},
        "rows": 48,
        "before": {"training": {"max_steps": 12}},
        "config": {"training": {"max_steps": 24}},
    }
    return Amendment(number, step, **(shape | fields))


def test_lines_are_added_and_read_in_order(tmp_path: Path) -> None:
    assert read_amendments(tmp_path) == ()
    written = (amendment(), amendment(2, 20, data={"kind": "text"}, changes={"data.shards": ("a é", None)}))
    for each in written:
        append_amendment(tmp_path, each)
    assert read_amendments(tmp_path) == written
    assert len((tmp_path / AMENDMENTS).read_text().splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [AMENDMENTS]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append_amendment(tmp_path, amendment())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=rf"{AMENDMENTS} cannot be written: No space left"):
        append_amendment(tmp_path, amendment(2))
    assert read_amendments(tmp_path) == (amendment(),)


@pytest.mark.parametrize("line", ["", "{}", "[1]", "3", '{"step": 3}', '{"number": 1, "step"'])
def test_a_line_of_another_form_is_told_with_its_place(line: str, tmp_path: Path) -> None:
    append_amendment(tmp_path, amendment())
    path = tmp_path / AMENDMENTS
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=rf"{AMENDMENTS}:2 is "):
        read_amendments(tmp_path)


def test_info_tells_of_them(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: {}\nmodel: {}\ntraining: {max_steps: 24}\n")
    assert "amendments" not in info(tmp_path)
    append_amendment(tmp_path, amendment())
    told = "after step 12 on 2026-11-30: training.max_steps 12 -> 24, optimizer.learning_rate 0.01 -> 0.02"
    assert info(tmp_path)["amendments"] == [told] == [str(amendment())]

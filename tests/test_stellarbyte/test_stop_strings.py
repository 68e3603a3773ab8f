"""Where a text ends that comes in pieces."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte.stop_strings import StopCutter


def cut(text: str, stop: Sequence[str]) -> str:
    """Reading character by character, up to where the first complete stop string began, the longest if several."""
    for end in range(1, len(text) + 1):
        complete = [len(s) for s in stop if text[:end].endswith(s)]
        if complete:
            return text[: end - max(complete)]
    return text


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=8),
    stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
)
def test_cutting_depends_on_no_border(pieces: list[str], stop: list[str]) -> None:
    cutter, passed = StopCutter(stop), ""
    for piece in pieces:
        passed += cutter.push(piece)
        if cutter.stopped:
            break
        assert "".join(pieces).startswith(passed)
    passed += cutter.finish()
    assert passed == cut("".join(pieces), stop)
    assert cutter.stopped == any(s in "".join(pieces) for s in stop)


def test_nothing_is_held_back_that_begins_no_stop_string() -> None:
    cutter = StopCutter(["\n\n", "END"])
    assert [cutter.push(text) for text in ("one\n", "two E", "N", "d\n", "\nx")] == ["one", "\ntwo ", "", "ENd", ""]
    assert cutter.stopped


def test_a_stop_string_of_nothing_or_of_no_characters_is_refused() -> None:
    with pytest.raises(UserError, match=r"^stop 'a\\udcff' is not UTF-8 text, as every answer is"):
        StopCutter(["b", "a\udcff"])
    with pytest.raises(UserError, match=r"^stop '' would end every answer at once"):
        StopCutter(["x", ""])

"""Traced texts say what str says, and each character keeps its origin."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.chat.traced import Traced, TracingError, holds_traced, traced

TEXT = st.text(st.sampled_from("ab \n<é"), max_size=8)

OPERATIONS: dict[str, Callable[[str, str], Any]] = {
    "strip": lambda text, other: text.strip(other or None),
    "lstrip": lambda text, _: text.lstrip(),
    "rstrip": lambda text, other: text.rstrip(other or None),
    "split": lambda text, other: text.split(other or None),
    "split once": lambda text, other: text.split(other or None, 1),
    "rsplit": lambda text, other: text.rsplit(other or None, 1),
    "splitlines": lambda text, _: text.splitlines(),
    "splitlines with ends": lambda text, _: text.splitlines(True),
    "partition": lambda text, other: text.partition(other or "a"),
    "rpartition": lambda text, other: text.rpartition(other or "a"),
    "replace": lambda text, other: text.replace("a", other),
    "replace once": lambda text, other: text.replace("b", other, 1),
    "join": lambda text, other: text.join([other, "x", other]),
    "add": lambda text, other: text + other,
    "add to": lambda text, other: other + text,
    "times": lambda text, _: text * 2 + 2 * text,
    "slice": lambda text, _: text[1:-1] + text[::-1] + text[:3],
    "characters": lambda text, _: list(text),
    "removeprefix": lambda text, other: text.removeprefix(other),
    "removesuffix": lambda text, other: text.removesuffix(other),
    "lower": lambda text, _: text.lower() + text.casefold() + text.swapcase(),
    "upper": lambda text, _: text.upper() + text.title() + text.capitalize(),
}


def check(result: Any, expected: Any, origin_of: dict[str, str]) -> None:
    assert result == expected
    if isinstance(result, list | tuple):
        for item, other in zip(result, expected, strict=True):
            check(item, other, origin_of)
        return
    assert isinstance(result, Traced)
    # Every letter of the text was given its own code as its origin: what is not the template's must tell itself.
    for character, origin in zip(str.__str__(result), result.origins, strict=True):
        assert origin == "\0" or origin_of[character.lower()] == origin


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=settings.default.max_examples // 2)
@given(text=TEXT, other=TEXT)
def test_operations(name: str, text: str, other: str) -> None:
    origin_of = {character: chr(index) for index, character in enumerate("ab \n<é", 1)}
    known = Traced(text, "".join(origin_of[character] for character in text))
    check(OPERATIONS[name](known, other), OPERATIONS[name](text, other), origin_of)


def test_what_changes_its_length() -> None:
    text = Traced("aß", "\1\2")
    assert (text.upper(), text.upper().origins) == ("ASS", "\1\2\2")
    with pytest.raises(TracingError, match="empty"):
        text.replace("", "x")
    with pytest.raises(TypeError, match="can only concatenate str"):
        text + 3  # type: ignore[operator]


def test_holds_traced() -> None:
    assert holds_traced([{"a": ("x", Traced("b", "\1"))}])
    assert not holds_traced(["x", 3, None, traced("b"), Traced("", "")])

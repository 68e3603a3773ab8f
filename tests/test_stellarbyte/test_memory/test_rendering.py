"""What is recalled fits its budget, and stands where the model looks for it."""

import pytest

from stellarbyte.memory.marks import CLOSING, LINE, NOTE, OPENING, holds_marks
from stellarbyte.memory.rendering import Block, placed, rendered

from .recalled import found

TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
]


def words(text: str) -> int:
    return len(text.split())


def test_a_block() -> None:
    block = rendered([found("My dog is called Rex.", "chat"), found("a\nb", "", 7)], 100, words)
    assert block.text.split("\n") == [
        OPENING,
        NOTE,
        "[1] 2026-05-28, chat",
        f"{LINE}My dog is called Rex.",
        "[2] 2026-05-28",
        f"{LINE}a",
        f"{LINE}b",
        CLOSING,
    ]
    assert [one.entry.id for one in block.used] == [1, 7]
    assert rendered([], 100, words) == Block()


def test_what_does_not_fit_is_left_out_and_what_follows_is_tried() -> None:
    entries = [found("short one", number=1), found("long " * 40, number=2), found("short two", number=3)]
    block = rendered(entries, 50, words)
    assert [one.entry.id for one in block.used] == [1, 3] and words(block.text) <= 50
    assert "[2] 2026-05-28" in block.text and "long" not in block.text


@pytest.mark.parametrize("most", range(30, 90, 3))
def test_of_the_best_a_beginning_is_taken(most: int) -> None:
    text = " ".join(f"word{number}" for number in range(100))
    block = rendered([found(text), found("x", number=2)], most, words)
    assert words(block.text) <= most and block.used
    kept = block.text.split("\n")[3].removeprefix(LINE)
    assert kept.endswith("…") and text.startswith(kept[:-1]) and text[len(kept) - 1] == " "


def test_a_beginning_ends_with_a_sentence_where_one_ends_late_enough() -> None:
    text = "甲乙丙丁戊己庚辛。" * 4 + "零" * 100
    (line,) = rendered([found(text)], 190, len).text.split("\n")[3:-1]
    assert line == f"{LINE}{'甲乙丙丁戊己庚辛。' * 4}…"


def test_a_huge_text_is_not_looked_at_as_a_whole() -> None:
    lengths: list[int] = []

    def tokens(text: str) -> int:
        lengths.append(len(text))
        return words(text)

    block = rendered([found("word " * 200_000), found("x", number=2)], 50, tokens)
    assert [one.entry.id for one in block.used] == [1] and max(lengths) < 3000


def test_too_small_a_budget_recalls_nothing() -> None:
    assert rendered([found("My dog is called Rex.")], 10, words) == Block()


def test_where_a_block_stands() -> None:
    block = f"{OPENING}\n{CLOSING}"
    assert placed(TURNS, None, "", takes_system=True) == TURNS
    assert placed(TURNS, "Be brief.", "", takes_system=False)[0] == {"role": "system", "content": "Be brief."}
    alone = placed(TURNS, None, block, takes_system=True)
    assert alone == [{"role": "system", "content": block}, *TURNS]
    both = placed(TURNS, "Be brief.", block, takes_system=True)
    assert both == [{"role": "system", "content": f"Be brief.\n\n{block}"}, *TURNS]
    first = placed(TURNS, None, block, takes_system=False)
    assert first == [{"role": "user", "content": f"{block}\n\none"}, *TURNS[1:]]
    assert TURNS[0]["content"] == "one"


def test_what_comes_from_a_prompt_is_known_again() -> None:
    block = rendered([found("My dog is called Rex.")], 100, words).text
    for text in (block, OPENING, f"x {CLOSING}"):
        assert holds_marks(text)
    for text in ("My dog is called Rex.", "a │ b", "⟦x⟧", "│ ├── a tree of files", ""):
        assert not holds_marks(text)

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data import documents
from stellarbyte_jax.data.documents import BadRecords, RecordError, RecordText, pieces
from stellarbyte_jax.data.tokenizer import Tokenizer


def record_text(fields: tuple[str, ...] = ("text",), template: str | None = None) -> RecordText:
    return RecordText(SourceConfig("x.jsonl", fields, template))


def test_fields_are_joined_by_a_blank_line_or_put_into_the_template() -> None:
    poem = {"title": "静夜思", "text": "床前明月光", "year": 726}
    assert record_text(("title", "text"))(poem, "x:1") == "静夜思\n\n床前明月光"
    assert record_text(("title", "text"), "# {title}\n{{{text}}}\n")(poem, "x:1") == "# 静夜思\n{床前明月光}\n"
    assert record_text(("year",), "in {year}")(poem, "x:1") == "in 726"


@pytest.mark.parametrize(
    "template", ["{title", "}", "{other}", "{}", "{text.upper}", "{text!r}", "{text:>9}", "{text[0]}"]
)
def test_a_template_that_cannot_be_filled_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="template"):
        record_text(("text",), template)


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ([1], "x.jsonl:7 is not a JSON object but a list"),
        (None, "x.jsonl:7 is not a JSON object but null"),
        (3, "x.jsonl:7 is not a JSON object but a number"),
        ({"title": "t", "n": 1}, r"x.jsonl:7 lacks the field 'text' \(it has title, n\)"),
        ({}, r"lacks the field 'text' \(it has none\)"),
        ({"text": None}, "x.jsonl:7 has null in the field 'text', not text"),
        ({"text": ["a"]}, "has a list in the field 'text'"),
        ({"text": True}, "has true or false in the field 'text'"),
        ({"text": "a\ud83d"}, "holds a lone surrogate"),
        ({"text": "a\udcff"}, "holds a byte that is not UTF-8"),
    ],
)
def test_a_bad_record_is_named(record: object, complaint: str) -> None:
    with pytest.raises(RecordError, match=complaint):
        record_text()(record, "x.jsonl:7")


def test_bad_records_fail_with_the_fix() -> None:
    with pytest.raises(UserError, match=r"x:1 is bad: mend it, or set on_bad_record to skip$"):
        BadRecords("fail").add("x:1 is bad")


def test_bad_records_are_counted_and_the_first_few_kept() -> None:
    bad = BadRecords("skip")
    assert bad.summary() is None
    bad.add("x:1 is bad")
    assert bad.summary() == "Skipped 1 bad record: x:1 is bad"
    for line in range(2, 9):
        bad.add(f"x:{line} is bad")
    assert bad.count == 8
    assert bad.summary() == "Skipped 8 bad records: " + "; ".join(f"x:{n} is bad" for n in range(1, 6)) + "; …"


@given(blocks=st.lists(st.text("ab \n\t.床9", max_size=30)), size=st.integers(1, 12))
def test_pieces_are_the_text_in_pieces(blocks: list[str], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_CHARS", size)
        parts = list(pieces(blocks))
    assert "".join(parts) == "".join(blocks)
    assert all(0 < len(part) <= size for part in parts)


WORDS = st.lists(
    st.sampled_from(["the", "'s", "床前", "12345", "  ", "\n", "\r\n", "\n    ", " ", "...", "_x", "\u0301"])
)


@given(words=WORDS, size=st.integers(8, 30))
def test_a_cut_at_a_word_leaves_the_tokens_as_they_are(tokenizer: Tokenizer, words: list[str], size: int) -> None:
    text = "".join(words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_CHARS", size)
        parts = list(pieces([text]))
    # A part that is as long as allowed had no such place.
    if all(len(part) < size for part in parts[:-1]):
        assert [i for part in parts for i in tokenizer.encode(part)] == tokenizer.encode(text)


def test_the_pieces_of_a_real_text_have_its_tokens(tokenizer: Tokenizer) -> None:
    text = Path(documents.__file__).read_text("utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_CHARS", 300)
        parts = list(pieces([text]))
    assert len(parts) > 10
    assert [i for part in parts for i in tokenizer.encode(part)] == tokenizer.encode(text)

import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import BadRecords, RecordError
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data import documents
from stellarbyte_jax.data.documents import RecordText, pieces, read_documents
from stellarbyte_jax.data.tokenizer import Tokenizer


def record_text(fields: tuple[str, ...] | None = ("text",), template: str | None = None) -> RecordText:
    chosen = {} if fields is None else {"fields": fields}
    return RecordText(SourceConfig("x.jsonl", template=template, **chosen))


def test_fields_are_joined_by_a_blank_line_or_put_into_the_template() -> None:
    poem = {"title": "静夜思", "text": "床前明月光", "year": 726}
    assert record_text(("title", "text"))(poem, "x:1") == "静夜思\n\n床前明月光"
    assert record_text(("title", "text"), "# {title}\n{{{text}}}\n")(poem, "x:1") == "# 静夜思\n{床前明月光}\n"
    assert record_text(("year",), "in {year}")(poem, "x:1") == "in 726"


def test_a_template_says_which_fields_it_takes_and_where_lines_end() -> None:
    poem = {"title": "静夜思", "text": "床前明月光"}
    # As a shell and YAML's single quotes leave it.
    assert record_text(None, r"{title}\n\t{text}\\n")(poem, "x:1") == "静夜思\n\t床前明月光\\n"
    assert record_text(None, "{title}\n{text}")(poem, "x:1") == "静夜思\n床前明月光"
    assert record_text(None, "{text}{text}").fields == ("text",)
    assert record_text(None).fields == ("text",)
    with pytest.raises(UserError, match=r"has \\d, which is unknown: \\n is a line end"):
        record_text(None, r"\d{text}")


@pytest.mark.parametrize(
    "template", ["{title", "}", "{other}", "{}", "{text.upper}", "{text!r}", "{text:>9}", "{text[0]}", "", "text"]
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
        ({"text": {"a": 1}}, "has an object in the field 'text'"),
        ({"text": b"a"}, "has bytes in the field 'text'"),
        ({"text": datetime.date(2026, 1, 2)}, "has a date in the field 'text'"),
        ({"text": 12}, "has a number in the field 'text'"),
        ({"text": float("nan")}, "has a number in the field 'text'"),
        ({"text": "a\0"}, "holds a NUL character"),
        ({"text": "a\ud83d"}, "holds a lone surrogate"),
        ({"text": "a\udcff"}, "holds a byte that is not UTF-8"),
    ],
)
def test_a_bad_record_is_named(record: object, complaint: str) -> None:
    with pytest.raises(RecordError, match=complaint):
        record_text()(record, "x.jsonl:7")
    with pytest.raises(RecordError, match=complaint):
        record_text(("text",), "{text}")(record, "x.jsonl:7")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, None, [], b""])
def test_what_is_missing_is_no_word_of_a_template(value: object) -> None:
    with pytest.raises(RecordError, match=r"x:1 has .* in the field 'year', not text"):
        record_text(("title", "year"), "{title} {year}")({"title": "a", "year": value}, "x:1")


def test_documents_of_records(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(
        b'{"text": "one"}\n{"text": null}\n{"text": ""}\n{"text": NaN}\n{"n": 1}\n{"text": "\\ud83d"}\n'
        b'{"text": "two"}\n'
    )
    bad = BadRecords("skip")
    found = [(document.text, document.origin) for document in read_documents(path, record_text(), bad)]
    assert found == [("one", f"{path}:1"), ("two", f"{path}:7")]
    assert (bad.count, bad.empty) == (4, 1)
    for complaint, place in zip(bad.first, (2, 4, 5, 6), strict=True):
        assert complaint.startswith(f"{path}:{place} ")
    with pytest.raises(UserError, match=r"x.jsonl:2 has null in the field 'text'"):
        list(read_documents(path, record_text(), BadRecords("fail")))


def test_long_texts_come_in_pieces(tmp_path: Path) -> None:
    text = "床前 light\n" * 400_000
    (tmp_path / "x.txt").write_text(text, "utf-8")
    parts = list(read_documents(tmp_path / "x.txt", record_text(), BadRecords("fail")))
    assert "".join(part.text for part in parts) == text
    assert max(len(part.text) for part in parts) <= documents.PIECE_CHARS
    assert [part.begins for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_text_that_is_not_utf8_at_its_end_gives_no_piece(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"good line\n" * 400_000 + b"\xff")
    bad = BadRecords("skip")
    assert list(read_documents(tmp_path / "x.txt", record_text(), bad)) == []
    assert bad.count == 1


@given(blocks=st.lists(st.text("ab \n\t.床9", max_size=30)), size=st.integers(1, 12))
def test_pieces_are_the_text_in_pieces(blocks: list[str], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE_CHARS", size)
        parts = list(pieces(blocks))
    assert "".join(parts) == "".join(blocks)
    assert all(0 < len(part) <= size for part in parts)


WORDS = st.lists(
    st.sampled_from(
        ["the", "'s", "床前", "12345", "  ", "\n", "\r\n", "\n    ", " ", "...", "_x", "\u0301", "。", "\t", "'t"]
    )
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

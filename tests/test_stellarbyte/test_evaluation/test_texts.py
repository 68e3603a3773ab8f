"""Texts and their domains."""

import json
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte.evaluation.texts import Sources, Text, read_texts


def texts(*words: str, field: str = "text", domain: str | None = None, limit: int | None = None) -> list[Text]:
    return read_texts(Sources.of(words, field, domain, limit), lambda _: None)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "poem.txt").write_text("one\ntwo\n")
    records = [{"text": "a", "kind": "x", "body": "A"}, {"text": "", "kind": "x", "body": "B"}]
    records.append({"text": "c", "kind": "y", "body": "C"})
    (tmp_path / "many.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    (tmp_path / "a=b.txt").write_text("equal")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_each_path_is_a_domain_unless_it_is_named() -> None:
    found = texts("poem.txt", "tales=many.jsonl", "a=b.txt")
    assert found == [Text("one\ntwo\n", "poem.txt"), Text("a", "tales"), Text("c", "tales"), Text("equal", "a=b.txt")]


def test_records_name_their_text_and_their_domain() -> None:
    assert texts("many.jsonl", field="body", domain="kind") == [Text("A", "x"), Text("B", "x"), Text("C", "y")]
    assert texts("many.jsonl", limit=1) == [Text("a", "many.jsonl")]


def test_documents_without_text_are_told() -> None:
    said: list[str] = []
    read_texts(Sources.of(["many.jsonl"], "text", None, None), said.append)
    assert said == ["1 document holds no text and is left out"]


@pytest.mark.parametrize(
    ("words", "how", "sentence"),
    [
        (["nowhere.txt"], {}, "nowhere.txt does not exist"),
        (["poem.txt", "poem.txt"], {}, "--data names poem.txt twice"),
        (["a=poem.txt", "a=many.jsonl"], {}, "--data names a twice: give each text a name of its own"),
        (["many.jsonl"], {"field": "prose"}, r"many.jsonl:1 lacks the field 'prose' \(it has text, kind, body\)"),
        (["many.jsonl"], {"domain": "sort"}, "many.jsonl:1 lacks the field 'sort'"),
        (["poem.txt"], {"domain": "kind"}, "--domain-field kind is for records, and poem.txt is plain text"),
        (["empty.txt"], {}, "--data empty.txt holds no text"),
        (["number.jsonl"], {}, "number.jsonl:1 has a number in the field 'text', not text: mend it"),
    ],
)
def test_what_is_refused(folder: Path, words: list[str], how: dict, sentence: str) -> None:
    (folder / "empty.txt").touch()
    (folder / "number.jsonl").write_text('{"text": 3}\n')
    with pytest.raises(UserError, match=sentence):
        texts(*words, **how)

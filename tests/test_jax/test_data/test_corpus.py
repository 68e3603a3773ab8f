import json
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data.corpus import documents, write_stdlib_corpus


def test_documents_come_in_order_with_their_origin(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
    (tmp_path / "a.txt").write_text("one")
    found = [(document.text, document.origin) for document in documents([SourceConfig(str(tmp_path))])]
    assert found == [
        ("one", f"{tmp_path}/a.txt:1"),
        ("two", f"{tmp_path}/b.jsonl:1"),
        ("three", f"{tmp_path}/b.jsonl:2"),
    ]


def test_skipped_records_are_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one"}\n[]\nno\n')
    told: list[str] = []
    assert len(list(documents([SourceConfig(str(path))], "skip", told.append))) == 1
    assert len(told) == 1
    assert told[0].startswith(f"Skipped 2 bad records: {path}:2 is not a JSON object but a list; {path}:3 is not valid")
    with pytest.raises(UserError, match=r"x.jsonl:2"):
        list(documents([SourceConfig(str(path))]))


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_an_empty_source_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"x.jsonl holds no text"):
        list(documents([SourceConfig(f"{tmp_path}/x.jsonl")]))


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "new" / "stdlib.jsonl"
    count = write_stdlib_corpus(path)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    paths = [record["path"] for record in records]
    assert len(records) == count > 300
    assert paths == sorted(paths)
    assert {"argparse.py", "json/decoder.py"} <= set(paths)
    assert not any(
        {"test", "tests", "site-packages", "idle_test", "pydoc_data"} & set(path.split("/")) for path in paths
    )
    again = tmp_path / "again.jsonl"
    write_stdlib_corpus(again)
    write_stdlib_corpus(again)  # the same content is no loss
    again.write_text('{"text": "mine"}\n')
    with pytest.raises(UserError, match=r"holds something else: name another file, or replace it with --force"):
        write_stdlib_corpus(again)
    assert again.read_text() == '{"text": "mine"}\n'
    assert write_stdlib_corpus(again, force=True) == count
    assert again.read_bytes() == path.read_bytes()


def test_the_standard_library_goes_into_jsonl_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"let its name end in \.jsonl"):
        write_stdlib_corpus(tmp_path / "x.txt")

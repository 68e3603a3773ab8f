import json
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data.corpus import documents, source_files, write_stdlib_corpus


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.md", "sub/deeper/c.py", "sub/d.jsonl.gz", "sub/image.png", ".git/e.txt", "sub/.f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}")
    return tmp_path


def names(source: str, folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in source_files(SourceConfig(source))]


def test_a_folder_is_searched_whole_in_order(folder: Path) -> None:
    assert names(str(folder), folder) == ["a.md", "b.txt", "sub/d.jsonl.gz", "sub/deeper/c.py"]


def test_globs_and_single_files(folder: Path) -> None:
    assert names(f"{folder}/*.txt", folder) == ["b.txt"]
    assert names(f"{folder}/**/*.[pm]*[yd]", folder) == ["a.md", "sub/deeper/c.py"]
    assert names(f"{folder}/a.md", folder) == ["a.md"]
    (folder / "odd[1].txt").write_text("x")
    assert names(f"{folder}/odd[1].txt", folder) == ["odd[1].txt"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("nowhere.txt", "nowhere.txt does not exist: check the path"),
        ("*.rst", r"no file matches .*\*.rst: check the pattern"),
        ("sub/image.png", "image.png has an unsupported format: use .txt .md"),
        ("sub/*.png", "image.png has an unsupported format"),
        ("empty", "empty holds no file that can be read"),
    ],
)
def test_sources_that_give_no_file(folder: Path, source: str, complaint: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=complaint):
        source_files(SourceConfig(f"{folder}/{source}"))


def test_documents_come_in_order_with_their_origin(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n{"text": "three"}\n')
    (tmp_path / "a.txt").write_text("one")
    found = [(document.text, document.origin) for document in documents(SourceConfig(str(tmp_path)))]
    assert found == [
        ("one", f"{tmp_path}/a.txt:1"),
        ("two", f"{tmp_path}/b.jsonl:1"),
        ("three", f"{tmp_path}/b.jsonl:2"),
    ]


def test_skipped_records_are_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one"}\n[]\nno\n')
    told: list[str] = []
    assert len(list(documents(SourceConfig(str(path)), "skip", told.append))) == 1
    assert len(told) == 1
    assert told[0].startswith(f"Skipped 2 bad records: {path}:2 is not a JSON object but a list; {path}:3 is not valid")
    with pytest.raises(UserError, match=r"x.jsonl:2"):
        list(documents(SourceConfig(str(path))))


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_an_empty_source_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"x.jsonl holds no text"):
        list(documents(SourceConfig(f"{tmp_path}/x.jsonl")))


def test_the_standard_library_is_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "new" / "stdlib.jsonl"
    count = write_stdlib_corpus(path)
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    paths = [record["path"] for record in records]
    assert len(records) == count > 300
    assert paths == sorted(paths)
    assert {"argparse.py", "json/decoder.py"} <= set(paths)
    assert not any({"test", "tests", "site-packages", "idle_test"} & set(path.split("/")) for path in paths)
    again = tmp_path / "again.jsonl"
    write_stdlib_corpus(again)
    assert again.read_bytes() == path.read_bytes()


def test_the_standard_library_goes_into_jsonl_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"let its name end in \.jsonl"):
        write_stdlib_corpus(tmp_path / "x.txt")

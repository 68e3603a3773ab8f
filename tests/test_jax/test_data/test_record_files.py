import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from stellarbyte.errors import UserError
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data import documents
from stellarbyte_jax.data.documents import BadRecords, RecordText
from stellarbyte_jax.data.record_files import file_format, read_documents

SUFFIXES = [".txt", ".md", ".py", ".jsonl", ".json", ".csv", ".parquet"]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXTS = ['He said "go",\nand left.', "床前明月光\r\n疑是地上霜", "a,b;c\ttab"]


def read(path: Path, bad: BadRecords | None = None, fields: tuple[str, ...] = ("text",)) -> list[tuple[str, str]]:
    """Text and origin, without the folder, of each document."""
    found: list[tuple[str, str]] = []
    for document in read_documents(path, RecordText(SourceConfig(str(path), fields)), bad or BadRecords("fail")):
        if document.begins:
            found.append(("", document.origin.removeprefix(f"{path.parent}/")))
        found[-1] = (found[-1][0] + document.text, found[-1][1])
    return found


def content(suffix: str, texts: list[str], folder: Path) -> bytes:
    if suffix == ".jsonl":
        return "".join(json.dumps({"n": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    if suffix == ".json":
        return json.dumps([{"text": text} for text in texts], indent=1).encode()
    if suffix == ".csv":
        cells = ['"' + text.replace('"', '""') + '"' for text in texts]
        return ("n,text\r\n" + "".join(f"1,{cell}\r\n" for cell in cells)).encode()
    if suffix == ".parquet":
        parquet.write_table(pa.table({"n": [1] * len(texts), "text": texts}), folder / "table")
        return (folder / "table").read_bytes()
    return texts[0].encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_back_its_texts(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"x{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](content(suffix, TEXTS, tmp_path)))
    texts = [text for text, _ in read(path)]
    assert texts == (TEXTS[:1] if suffix in (".txt", ".md", ".py") else TEXTS)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_tells_how_much_it_read(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"x{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](content(suffix, TEXTS, tmp_path)))
    record_text = RecordText(SourceConfig(str(path)))
    counts = [document.bytes_read for document in read_documents(path, record_text, BadRecords("fail"))]
    assert counts == sorted(counts)
    assert counts[-1] == path.stat().st_size


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_truncated_archive_is_bad(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"x{suffix}{compression}"
    whole = COMPRESS[compression](content(suffix, [text * 99 for text in TEXTS], tmp_path))
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"x{suffix}{compression} is a truncated or damaged {compression} file"):
            read(path)
        bad = BadRecords("skip")
        assert len(read(path, bad)) <= len(TEXTS)
        assert bad.count == 1


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_what_comes_before_the_damage_is_kept(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"x.jsonl{compression}"
    records = COMPRESS[compression](content(".jsonl", TEXTS, tmp_path))
    path.write_bytes(records + records[:-4])
    bad = BadRecords("skip")
    assert [text for text, _ in read(path, bad)][:3] == TEXTS
    assert bad.count == 1


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_archives_in_several_parts_are_read_to_the_end(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"x.txt{compression}"
    path.write_bytes(b"".join(COMPRESS[compression](part) for part in (b"one ", b"", b"two " * 99999, b"three")))
    assert read(path)[0][0] == "one " + "two " * 99999 + "three"


def test_noise_in_place_of_an_archive_is_bad(tmp_path: Path) -> None:
    for compression in (".gz", ".zst"):
        (tmp_path / f"x.txt{compression}").write_bytes(b"this is no archive at all")
        with pytest.raises(UserError, match="truncated or damaged"):
            read(tmp_path / f"x.txt{compression}")


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": ""}\n{"text": "two"}')
    assert read(path) == [("one", "x.jsonl:1"), ("two", "x.jsonl:5")]


BAD_LINES = {
    b'{"text": "a': "x.jsonl:2 is not valid JSON",
    b"[1, 2]": "x.jsonl:2 is not a JSON object but a list",
    b'"text"': "x.jsonl:2 is not a JSON object but a string",
    b'{"title": "a"}': "x.jsonl:2 lacks the field 'text'",
    b'{"text": null}': "x.jsonl:2 has null in the field 'text'",
    b'{"text": "\xff"}': r"x.jsonl:2 is not valid UTF-8 \(byte 0xff",
    b'{"text": "\\ud83d"}': "x.jsonl:2 holds a lone surrogate",
    b"[" * 100000: "x.jsonl:2 is not",
    b'{"text": ' + b"1" * 5000 + b"}": "x.jsonl:2 is not JSON that can be read",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:12])
def test_a_bad_line_fails_or_is_skipped(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n{"text": "two"}\n')
    with pytest.raises(UserError, match=BAD_LINES[line]):
        read(path)
    bad = BadRecords("skip")
    assert read(path, bad) == [("one", "x.jsonl:1"), ("two", "x.jsonl:3")]
    assert bad.count == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[]", []),
        (' {"text": "one"}\n', [("one", "x.json:1")]),
        ('\ufeff[\n{"text": "one"},\n\n{"text": "two"}\n]\n', [("one", "x.json:2"), ("two", "x.json:4")]),
    ],
)
def test_json(tmp_path: Path, text: str, expected: list[tuple[str, str]]) -> None:
    (tmp_path / "x.json").write_text(text, "utf-8")
    assert read(tmp_path / "x.json") == expected


@pytest.mark.parametrize(
    ("text", "complaint", "kept"),
    [
        ('[{"text": "one"},\n{"text": }]', "x.json:2 is not valid JSON", 1),
        ('[{"text": "one"}\n{"text": "two"}]', r"x.json:2 is not valid JSON \(expected , or \], found '{'\)", 1),
        ('[{"text": "one"},\n7]', "x.json:2 is not a JSON object but a number", 1),
        ('[{"text": "one"},\n{}, {"text": "two"}]', "x.json:2 lacks the field", 2),
        ('[{"text": "one"}', "found the end of the file", 1),
        ('{"text": "one"} x', "text after the end", 1),
        ("", "x.json:1 is not valid JSON", 0),
        ("[" * 100000, "x.json:1 is not JSON", 0),
    ],
)
def test_bad_json(tmp_path: Path, text: str, complaint: str, kept: int) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=complaint):
        read(tmp_path / "x.json")
    bad = BadRecords("skip")
    assert len(read(tmp_path / "x.json", bad)) == kept
    assert bad.count == 1


@given(records=st.lists(st.text("a,b\n \"'{}[]\\é", min_size=1), max_size=5), indent=st.sampled_from([None, 2]))
def test_json_lists_are_read_item_by_item(tmp_path_factory, records: list[str], indent: int | None) -> None:
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps([{"text": text, "n": [[{}]]} for text in records], indent=indent))
    assert [text for text, _ in read(path)] == records


def test_csv_lines_are_where_the_records_begin(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b'\xef\xbb\xbftext,n\n"one\nand more",1\n\ntwo,2\n')
    assert read(tmp_path / "x.csv") == [("one\nand more", "x.csv:2"), ("two", "x.csv:5")]


def test_long_csv_cells_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text\n" + "a" * 300_000 + "\n")
    assert len(read(tmp_path / "x.csv")[0][0]) == 300_000


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (b"a", "x.csv:3 has 1 cells where the header has 2"),
        (b"a,b,c", "x.csv:3 has 3 cells where the header has 2"),
        (b"\xff,b", "x.csv:3 holds a byte that is not UTF-8"),
        (b'"a"x,b', "x.csv:3 is not valid CSV"),
    ],
)
def test_bad_csv_rows(tmp_path: Path, row: bytes, complaint: str) -> None:
    (tmp_path / "x.csv").write_bytes(b"text,n\none,1\n" + row + b"\ntwo,2\n")
    with pytest.raises(UserError, match=complaint):
        read(tmp_path / "x.csv")
    bad = BadRecords("skip")
    assert [text for text, _ in read(tmp_path / "x.csv", bad)] == ["one", "two"]
    assert bad.count == 1


def test_a_quote_never_closed_does_not_swallow_the_rest_in_silence(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('text\none\n"two\nthree\n')
    with pytest.raises(UserError, match=r"x.csv:3 is not valid CSV"):
        read(tmp_path / "x.csv")


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_the_column_is_refused_even_when_skipping(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content(suffix, TEXTS, tmp_path))
    with pytest.raises(UserError, match=r"has no column 'body': set the source's fields to some of \['n', 'text'\]"):
        read(path, BadRecords("skip"), ("body",))


def test_parquet_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"text": ["one", None, "two"]}), path)
    with pytest.raises(UserError, match=r"x.parquet:2 has null in the field 'text'"):
        read(path)
    assert read(path, BadRecords("skip")) == [("one", "x.parquet:1"), ("two", "x.parquet:3")]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"x.parquet:1 is not readable as parquet"):
        read(path)


@pytest.mark.parametrize("compression", COMPRESS)
def test_text_that_is_not_utf8_names_the_line_and_is_skipped_whole(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"x.txt{compression}"
    for before in (1, 200_000, 400_000):  # in the first block of a file, in a later one
        path.write_bytes(COMPRESS[compression]("né line\n".encode() * before + b"bad \xe9\xff\nmore\n"))
        with pytest.raises(UserError, match=rf"x.txt{compression}:{before + 1} is not valid UTF-8 \(byte 0xe9"):
            read(path)
        bad = BadRecords("skip")
        assert read(path, bad) == []
        assert bad.count == 1


def test_text_that_ends_inside_a_character_is_bad(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes("a\n床".encode()[:-1])
    with pytest.raises(UserError, match=r"x.txt:2 is not valid UTF-8"):
        read(tmp_path / "x.txt")


def test_text_keeps_its_line_ends_but_no_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read(tmp_path / "x.txt") == [("a\r\nb\rc\n", "x.txt:1")]
    (tmp_path / "x.txt").write_bytes(b"")
    assert read(tmp_path / "x.txt") == []


def test_long_texts_come_in_pieces(tmp_path: Path) -> None:
    text = "床前 light\n" * 400_000
    (tmp_path / "x.txt").write_text(text, "utf-8")
    record_text = RecordText(SourceConfig("x.txt"))
    parts = list(read_documents(tmp_path / "x.txt", record_text, BadRecords("fail")))
    assert "".join(part.text for part in parts) == text
    assert max(len(part.text) for part in parts) <= documents.PIECE_CHARS
    assert [part.begins for part in parts] == [True] + [False] * (len(parts) - 1)
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.txt cannot be read: No such file"):
        read(tmp_path / "x.txt")


def test_formats_are_told_by_the_suffix() -> None:
    assert file_format(Path("a.b/X.JSONL.GZ")) == ".jsonl"
    assert file_format(Path("x.tar.gz")) is None
    assert file_format(Path("x.gz")) is None
    assert file_format(Path("README")) is None

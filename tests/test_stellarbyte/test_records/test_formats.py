import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import BadRecords
from stellarbyte.records.formats import FORMATS, TEXT_FORMATS, file_format, read_records

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}
ARCHIVES = [suffix for suffix in COMPRESS if suffix]
TEXTS = ['He said "go",\nand left.', "床前明月光\r\n疑是地上霜", "a,b;c\ttab"]


def read(path: Path, bad: BadRecords | None = None, fields: tuple[str, ...] = ("text",)) -> list[tuple[str, str]]:
    """Text and origin, without the folder, of each record."""
    records = read_records(path, bad or BadRecords("fail"), fields)
    return [(record.fields["text"], record.where.removeprefix(f"{path.parent}/")) for record in records]


def content(suffix: str, texts: list[str], folder: Path) -> bytes:
    if suffix in (".jsonl", ".ndjson"):
        return "".join(json.dumps({"n": 1, "text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    if suffix == ".json":
        return json.dumps([{"text": text} for text in texts], indent=1).encode()
    if suffix in (".csv", ".tsv"):
        sign = "," if suffix == ".csv" else "\t"
        cells = ['"' + text.replace('"', '""') + '"' for text in texts]
        return (f"n{sign}text\r\n" + "".join(f"1{sign}{cell}\r\n" for cell in cells)).encode()
    if suffix == ".parquet":
        parquet.write_table(pa.table({"n": [1] * len(texts), "text": texts}), folder / "table")
        return (folder / "table").read_bytes()
    return texts[0].encode()


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_back_its_texts(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"x{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](content(suffix, TEXTS, tmp_path)))
    texts = [text for text, _ in read(path)]
    assert texts == (TEXTS[:1] if suffix in TEXT_FORMATS else TEXTS)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_tells_how_much_it_read(tmp_path: Path, suffix: str, compression: str) -> None:
    path = tmp_path / f"x{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](content(suffix, TEXTS, tmp_path)))
    counts = [record.bytes_read for record in read_records(path, BadRecords("fail"))]
    assert counts == sorted(counts)
    assert counts[-1] == path.stat().st_size


@pytest.mark.parametrize("compression", ARCHIVES)
@pytest.mark.parametrize("suffix", FORMATS)
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


@pytest.mark.parametrize("compression", ARCHIVES)
def test_what_comes_before_the_damage_is_kept(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"x.jsonl{compression}"
    records = COMPRESS[compression](content(".jsonl", TEXTS, tmp_path))
    path.write_bytes(records + records[:-4])
    bad = BadRecords("skip")
    assert [text for text, _ in read(path, bad)][:3] == TEXTS
    assert bad.count == 1


@pytest.mark.parametrize("compression", ARCHIVES)
def test_archives_in_several_parts_are_read_to_the_end(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"x.txt{compression}"
    path.write_bytes(b"".join(COMPRESS[compression](part) for part in (b"one ", b"", b"two " * 99999, b"three")))
    assert read(path)[0][0] == "one " + "two " * 99999 + "three"


def test_noise_in_place_of_an_archive_is_bad(tmp_path: Path) -> None:
    for compression in ARCHIVES:
        (tmp_path / f"x.txt{compression}").write_bytes(b"this is no archive at all")
        with pytest.raises(UserError, match="truncated or damaged"):
            read(tmp_path / f"x.txt{compression}")


def test_lines_of_json(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\n   \n{"text": ""}\n{"text": "two"}')
    assert read(path) == [("one", "x.jsonl:1"), ("", "x.jsonl:4"), ("two", "x.jsonl:5")]


BAD_LINES = {
    b'{"text": "a': "x.jsonl:2 is not valid JSON",
    b"[1, 2]": "x.jsonl:2 is not a JSON object but a list",
    b'"text"': "x.jsonl:2 is not a JSON object but a string",
    b'{"text": "\xff"}': r"x.jsonl:2 is not valid UTF-8 \(byte 0xff",
    b"[" * 100000: r"x.jsonl:2 is not JSON that can be read \(it is nested too deep\)",
    b'{"text": "a", "n": 1, "text": "b"}': "x.jsonl:2 has the field 'text' twice",
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
        ('[{"text": "one"},\n{"n": 1, "n": 2}, {"text": "two"}]', "x.json:2 has the field 'n' twice", 2),
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
    with pytest.raises(UserError, match=r"has no column 'body': set the source's fields to some of n, text"):
        read(path, BadRecords("skip"), ("body",))


def test_parquet_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pa.table({"text": ["one", None, "two"]}), path)
    assert read(path) == [("one", "x.parquet:1"), (None, "x.parquet:2"), ("two", "x.parquet:3")]
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
    assert read(tmp_path / "x.txt") == [("", "x.txt:1")]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"x.txt cannot be read: No such file"):
        read(tmp_path / "x.txt")


def test_formats_are_told_by_the_suffix() -> None:
    assert file_format(Path("a.b/X.JSONL.GZ")) == ".jsonl"
    assert file_format(Path("x.tar.gz")) is None
    assert file_format(Path("x.gz")) is None
    assert file_format(Path("README")) is None


@pytest.mark.parametrize(
    ("name", "content", "good", "complaints"),
    [
        (
            "x.jsonl",
            b'{"a": 1}\n[]\n{"a": \n\xff\n{"a": 2}',
            2,
            [":2 is not a JSON object but a list", ":3", ":4 is not"],
        ),
        ("x.jsonl", b"[" * 100000, 0, [":1 is not JSON that can be read"]),
        ("x.json", b'[{"a": 1},\n 3,\n {"a": 2}\n {"a": 3}]', 2, [":2 is not a JSON object", ":4 is not valid JSON"]),
        ("x.json", b'{"a": 1} x', 1, [":1 is not valid JSON (text after the end"]),
        ("x.json", b"[]", 0, []),
        ("x.json", b"", 0, [":1 is not valid JSON"]),
        ("x.json", b"[{}", 1, [":1 is not valid JSON (expected , or ], found the end of the file"]),
        ("x.json", b"\xff", 0, [":1 is not valid UTF-8"]),
        ("x.csv", b'a,b\n1,2\n3\n"4,5', 1, [":3 has 1 cells where the header has 2", ":4 is not valid CSV"]),
        ("x.csv", b"a\n\xff\n", 0, [":2 holds a byte that is not UTF-8"]),
        ("x.parquet", b"PAR1", 0, [":1 is not readable as parquet"]),
        ("x.txt", b"\xff", 0, [":1 is not valid UTF-8"]),
    ],
)
def test_damaged_files(name: str, content: bytes, good: int, complaints: list[str], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    bad_records = BadRecords("skip")
    assert len(list(read_records(path, bad_records))) == good
    assert bad_records.count == len(complaints)
    for told, complaint in zip(bad_records.first, complaints, strict=True):
        assert told.startswith(f"{path}{complaint}")
        assert "\n" not in told
    if complaints:
        with pytest.raises(UserError, match=r"mend it, or set data\.on_bad_record to skip"):
            list(read_records(path, BadRecords("fail", setting="data.on_bad_record")))


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    for name, content in [
        ("x.jsonl", '{"text": "x"}'),
        ("x.json", '{"text": "x"}'),
        ("x.csv", "text\nx"),
        ("x.txt", "x"),
    ]:
        (tmp_path / name).write_text(content, encoding="utf-8-sig")
        assert [text for text, _ in read(tmp_path / name)] == ["x"]

"""Sources that are too long, too deep, cut short or no text at all: one sentence each, and memory that is bounded."""

import bz2
import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from stellarbyte.errors import UserError
from stellarbyte.records import record, tables
from stellarbyte.records.bad_records import BadRecords
from stellarbyte.records.formats import read_records

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def read(path: Path) -> tuple[list[object], BadRecords]:
    """The texts that are left of a file, and what is wrong with the rest, which also ends a run in one sentence."""
    bad = BadRecords("skip")
    texts = [found.fields["text"] for found in read_records(path, bad)]
    if bad.count:
        with pytest.raises(UserError) as error:
            list(read_records(path, BadRecords("fail")))
        assert str(error.value).endswith("mend it, or set on_bad_record to skip")
        assert str(error.value).isprintable()
    return texts, bad


LONG = "x" * 5000
TOO_LONG: dict[str, tuple[str, list[str], str]] = {
    "a.jsonl": (f'{{"text": "a"}}\n{{"text": "{LONG}"}}\n{{"text": "b"}}\n', ["a", "b"], ":2"),
    "b.jsonl": (f'{{"text": "a"}}\n{LONG}', ["a"], ":2"),
    "a.json": (f'[{{"text": "a"}},\n{{"text": "{LONG}"}}, {{"text": "b"}}]', ["a", "b"], ":2"),
    "b.json": (f'{{"text": "{LONG}"}}', [], ":1"),
    "c.json": (f'[{{"text": "{LONG}', [], ":1"),
    "a.csv": (f"n,text\n1,a\n2,{LONG}\n3,b\n", ["a", "b"], ":3"),
    "b.csv": ('n,text\n1,a\n2,"' + "x\n" * 2000 + '"\n', ["a"], ":3"),
    "c.csv": ("n,text\n1,a\n2," + ",".join(["x"] * 2000) + "\n3,b\n", ["a", "b"], ":3"),
    "a.tsv": (f"n\ttext\n1\ta\n2\t{LONG}\n3\tb\n", ["a", "b"], ":3"),
    "a.txt": ("line\n" * 1000, [], ":1"),
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", TOO_LONG)
def test_a_record_too_long_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packing: str) -> None:
    content, kept, place = TOO_LONG[name]
    path = tmp_path / f"{name}{packing}"
    path.write_bytes(PACK[packing](content.encode()))
    monkeypatch.setattr(record, "MAX_RECORD_BYTES", 1000)
    texts, bad = read(path)
    assert texts[: len(kept)] == kept
    assert bad.first[0].startswith(f"{path}{place} is a record of more than 0 MiB, the most that is read")
    monkeypatch.setattr(record, "MAX_RECORD_BYTES", 1 << 20)
    if name not in ("b.jsonl", "c.json", "c.csv"):
        assert read(path)[1].count == 0


def test_rows_of_parquet_that_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": [os.urandom(3000).hex() for _ in range(5)]}), path)
    assert len(read(path)[0]) == 5
    monkeypatch.setattr(record, "MAX_RECORD_BYTES", 1000)
    texts, bad = read(path)
    assert texts == []
    assert bad.first == (f"{path}:1 is a record of more than 0 MiB, the most that is read: cut it into several",)


DEEP = "[" * 100_000
HOSTILE: dict[str, tuple[bytes, str]] = {
    "deep.jsonl": (DEEP.encode(), ":1 is not JSON that can be read (it is nested too deep)"),
    "deep2.jsonl": (b'{"text": ' + b'{"a":' * 100_000, ":1 is not JSON that can be read (it is nested too deep)"),
    "deep.json": (DEEP.encode(), ":1 is not JSON that can be read (it is nested too deep)"),
    "number.jsonl": (b'{"text": ' + b"7" * 20_000 + b"}", ":1 is not JSON that can be read (Exceeds the limit"),
    "number.json": (b'[{"text": ' + b"7" * 20_000 + b"}]", ":1 is not JSON that can be read (Exceeds the limit"),
    "latin1.txt": (("é" * 9).encode("latin-1"), ":1 is not valid UTF-8 (byte 0xe9"),
    "utf16.txt": ("text".encode("utf-16"), " is UTF-16, and not UTF-8: convert it with `iconv -f UTF-16 -t UTF-8`"),
    "utf16.jsonl": ('{"text": "a"}'.encode("utf-16"), " is UTF-16, and not UTF-8"),
    "utf16be.csv": (b"\xfe\xff" + "text\na\n".encode("utf-16-be"), " is UTF-16, and not UTF-8"),
    "utf32.json": ('[{"text": "a"}]'.encode("utf-32"), " is UTF-32, and not UTF-8"),
    "nul.txt": (b"a\nb\0c", ":2 holds a NUL character"),
    "utf16le.md": ("text".encode("utf-16-le"), ":1 holds a NUL character"),
    "nul.csv": (b"text\na\0b\n", ":2 holds a NUL character"),
    "quote.csv": (b'text\n"a"b\n', ":2 is not valid CSV"),
    "open.csv": (b'text\n"a\nb\n', ":2 is not valid CSV"),
    "plain.parquet": (b"no parquet at all, but long enough to be one", ":1 is not readable as parquet"),
    "empty.parquet": (b"", ":1 is not readable as parquet"),
    "cut.gz.jsonl": (b"\x1f\x8b", ":1 is not valid UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, sentence = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(content)
    texts, bad = read(path)
    assert texts == []
    assert bad.count == 1
    assert bad.first[0].startswith(f"{path}{sentence}"), bad.first[0]


def test_an_encrypted_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"]}), path)
    content = path.read_bytes()
    path.write_bytes(b"PARE" + content[4:-4] + b"PARE")
    texts, bad = read(path)
    assert texts == []
    assert "is not readable as parquet" in bad.first[0]


@pytest.mark.parametrize("name", ["x.parquet", "x.csv"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "x.csv":
        path.write_text("text,n,text\na,1,b\n")
    else:
        arrays = [pyarrow.array(["a"]), pyarrow.array([1]), pyarrow.array(["b"])]
        parquet.write_table(pyarrow.Table.from_arrays(arrays, names=["text", "n", "text"]), path)
    for columns in (None, ["text"]):
        with pytest.raises(UserError, match=rf"{name}:1 has the field 'text' twice: rename one of them"):
            list(read_records(path, BadRecords("skip"), columns))
    assert len(list(read_records(path, BadRecords("skip"), ["n"]))) == 1


@pytest.mark.parametrize("kind", ["pandas", "floats", "nested"])
def test_nan_in_parquet_is_null(tmp_path: Path, kind: str) -> None:
    values = {
        "pandas": pyarrow.array([None, None], pyarrow.float64()),
        "floats": pyarrow.array([float("nan"), float("nan")]),
        "nested": pyarrow.array([[{"a": float("nan")}], [{"a": None}]]),
    }
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": values[kind]}), path)
    expected = [{"a": None}] if kind == "nested" else None
    assert read(path)[0] == [expected, expected]


def test_a_table_of_many_columns_is_looked_through_once(tmp_path: Path) -> None:
    """To count each name among all took minutes for 100,000."""
    path = tmp_path / "x.csv"
    names = [f"c{number}" for number in range(100_000)]
    path.write_text(",".join([*names, "c5"]) + "\n")
    with pytest.raises(UserError, match=r"x.csv:1 has the field 'c5' twice"):
        list(read_records(path, BadRecords("skip")))


def test_a_pipe_that_took_a_files_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    with pytest.raises(UserError, match=r"x.jsonl cannot be read: it is a named pipe, not a file"):
        list(read_records(tmp_path / "x.jsonl", BadRecords("skip")))


def test_parts_of_json_are_read_across_blocks(tmp_path: Path) -> None:
    # Items that end, or are cut, wherever a block ends.
    texts = ["床" * n + '\\"\n' + "é\U0001f600" * (n % 7) for n in range(0, 3000, 7)]
    (tmp_path / "x.json").write_text(
        json.dumps([{"text": text, "n": [n, 1.5e3, True]} for n, text in enumerate(texts)])
    )
    assert read(tmp_path / "x.json")[0] == texts


def test_a_cell_that_a_file_holds_once_for_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rows take unpacked is not what the file says of their bytes."""
    path = tmp_path / "x.parquet"
    cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 200), pyarrow.array(["star " * 200_000]))
    parquet.write_table(pyarrow.table({"text": cells}), path)
    monkeypatch.setattr(tables, "_MOST_BYTES_AT_ONCE", 10 << 20)
    before = pyarrow.default_memory_pool().max_memory()
    texts = sum(len(found.fields["text"]) for found in read_records(path, BadRecords("fail")))
    assert texts == 200 * 1_000_000
    assert pyarrow.default_memory_pool().max_memory() <= max(before, 60 << 20)


# A child of its own, for its memory is bounded: 1.5 GiB, of which pyarrow and the like take 0.3.
CHILD = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))
from stellarbyte.records.bad_records import BadRecords
from stellarbyte.records.formats import read_records
bad = BadRecords("skip")
count = sum(1 for _ in read_records(Path(sys.argv[1]), bad))
print(count, bad.count, bad.first[:1])
"""
GIANTS = {
    "x.jsonl": (b'{"text": "a"}\n{"text": "', b'"}\n{"text": "b"}\n', "2 1"),
    "x.json": (b'[{"text": "', b'"}]', "0 1"),
    "x.csv": (b"text\na\n", b"\nb\n", "2 1"),
    "x.txt": (b"", b"", "0 1"),
}


@pytest.mark.long
@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", GIANTS)
def test_giants_are_refused_in_bounded_memory(tmp_path: Path, name: str, packing: str) -> None:
    before, after, expected = GIANTS[name]
    path = tmp_path / f"{name}{packing}"
    size = 3 << 30
    block = b"x" * (1 << 20)
    if packing:
        openers: dict[str, Callable[..., object]] = {
            ".gz": lambda: gzip.open(path, "wb", compresslevel=1),  # noqa: SIM115 - below
            ".zst": lambda: zstandard.open(path, "wb"),
            ".xz": lambda: lzma.open(path, "wb", preset=0),  # noqa: SIM115 - below
            ".bz2": lambda: bz2.open(path, "wb", compresslevel=1),  # noqa: SIM115 - below
        }
        size = 1 << 30 if packing in (".gz", ".zst") else 1 << 28  # the others are slow to write
        with openers[packing]() as file:  # type: ignore[attr-defined]
            file.write(before)
            for _ in range(size >> 20):
                file.write(block)
            file.write(after)
    else:
        with path.open("wb") as file:
            file.write(before)
            file.truncate(len(before) + size)  # a hole: zeros, which take no room on the disk
            file.seek(0, 2)
            file.write(after)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(expected), done.stdout

"""Sources of text and of conversations: no text at all, cut short, packed to burst, or no files."""

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pyarrow
import zstandard
from pyarrow import parquet

from hostile.case import Case, Cases, Command, World, stellarbyte, torch

_LINE = b'{"text": "a star that falls through silence"}\n'
_GIB = 1 << 30


def _packed(kind: str, block: bytes, times: int) -> Callable[[Path], None]:
    """A small file that unpacks to a large one."""

    def write(path: Path) -> None:
        openers: dict[str, Callable[[], Any]] = {
            "zst": lambda: zstandard.open(path, "wb"),
            "gz": lambda: gzip.open(path, "wb", compresslevel=1),  # noqa: SIM115 - below
        }
        with openers[kind]() as file:
            for _ in range(times):
                file.write(block)

    return write


def _holding(content: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(content), None)[1]


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("x.jsonl"), io.BytesIO())


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.jsonl", _LINE)


def _table(*columns: Any, names: tuple[str, ...] = ("text",), **options: Any) -> Callable[[Path], None]:
    return lambda path: parquet.write_table(
        pyarrow.Table.from_arrays(list(columns), names=list(names)), path, **options
    )


def _repeated_cells(path: Path) -> None:
    """A cell of 40 MB, which the file holds once, in each of 1,000 rows."""
    cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000), pyarrow.array(["star " * 8_000_000]))
    parquet.write_table(pyarrow.table({"text": cells}), path, dictionary_pagesize_limit=1 << 30)


def _damaged_table(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        parquet.write_table(pyarrow.table({"text": ["a star", "a byte"] * 500}), path)
        path.write_bytes(change(path.read_bytes()))

    return write


# The name of a file -> what is in it.
FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "no lines": ("x.jsonl", _holding(b"")),
    "blank lines": ("x.jsonl", _holding(b"\n \n\t\n" * 1000)),
    "lines that end in carriage returns": ("x.jsonl", _holding(_LINE.replace(b"\n", b"\r") * 20)),
    "a mark of UTF-8 before each line": ("x.jsonl", _holding((b"\xef\xbb\xbf" + _LINE) * 20)),
    "line separators of Unicode": ("x.jsonl", _holding('{"text": "a\u2028b"}\u2028{"text": "c"}\n'.encode())),
    "texts of nothing": ("x.jsonl", _holding(b'{"text": ""}\n' * 20)),
    "texts of blanks": ("x.jsonl", _holding(b'{"text": " \\n\\t "}\n' * 20)),
    "texts of NUL": ("x.jsonl", _holding(b'{"text": "a\\u0000b"}\n' * 20)),
    "texts of half a surrogate": ("x.jsonl", _holding(b'{"text": "a\\ud800"}\n' * 20)),
    "texts of no character": ("x.jsonl", _holding('{"text": "\ufdd0\U0010ffff\ufffe"}\n'.encode() * 20)),
    "texts of private characters": ("x.jsonl", _holding('{"text": "\U00100000\U00100001"}\n'.encode() * 20)),
    "texts of special tokens": ("x.jsonl", _holding(b'{"text": "<|SEOS|><|SBOS|><|PAD|>"}\n' * 20)),
    "texts of one letter, 3 MB": ("x.jsonl", _holding(b'{"text": "%s"}\n' % (b"a" * 3_000_000))),
    "texts of blanks alone, 3 MB": ("x.jsonl", _holding(b'{"text": "%sx"}\n' % (b" " * 3_000_000))),
    "texts of line ends alone, 3 MB": ("x.jsonl", _holding(b'{"text": "%sx"}\n' % (b"\\n" * 3_000_000))),
    "texts of accents on one letter": ("x.jsonl", _holding(('{"text": "e' + "\u0301" * 1_000_000 + '"}\n').encode())),
    "texts that are numbers": ("x.jsonl", _holding(b'{"text": 1e400}\n{"text": 5}\n')),
    "texts that are lists": ("x.jsonl", _holding(b'{"text": ["a", ["b"]]}\n')),
    "a field twice": ("x.jsonl", _holding(b'{"text": "a", "text": "b"}\n')),
    "a field with blanks": ("x.jsonl", _holding('{"text\u00a0": "a"}\n'.encode())),
    "lists in place of records": ("x.jsonl", _holding(b"[1, 2]\n" * 20)),
    "texts in place of records": ("x.jsonl", _holding(b'"a star"\n' * 20)),
    "objects 10,000 deep": ("x.jsonl", _holding(b'{"text": "a", "x": ' + b'{"a":' * 10_000 + b"}" * 10_001 + b"\n")),
    "100,000 fields": ("x.jsonl", _holding(json.dumps({str(i): i for i in range(100_000)}).encode() + b"\n")),
    "Python's words": ("x.jsonl", _holding(b"{'text': 'a', 'x': None}\n")),
    "a line of 70 MB": ("x.jsonl", _holding(b'{"text": "' + b"a" * 70_000_000 + b'"}\n' + _LINE)),
    "a comma at the end": ("x.json", _holding(b'[{"text": "a"},]')),
    "objects behind each other": ("x.json", _holding(b'{"text": "a"}{"text": "b"}')),
    "a list of lists": ("x.json", _holding(b'[[{"text": "a"}]]')),
    "an object of records": ("x.json", _holding(b'{"data": [{"text": "a"}]}')),
    "a number": ("x.json", _holding(b"5")),
    "a list that never ends": ("x.json", _holding(b'[{"text": "a"},' * 10_000)),
    "half a gigabyte of blanks": ("x.json", lambda path: os.truncate(_touched(path), _GIB // 2)),
    "a quote that never closes": ("x.csv", _holding(b'text\n"a\n' + b"b\n" * 100_000)),
    "100,000 columns": ("x.csv", _holding(b",".join(b"c%d" % i for i in range(100_000)) + b"\n" + b"," * 99_999)),
    "semicolons": ("x.csv", _holding(b"text;n\na;1\n")),
    "a header alone": ("x.csv", _holding(b"text\n")),
    "a header of blanks": ("x.csv", _holding(b" text \na\n")),
    "no header": ("x.csv", _holding(b"\n\n\n")),
    "NUL in a cell": ("x.tsv", _holding(b"text\na\0b\n")),
    "rows of unequal lengths": ("x.tsv", _holding(b"text\tn\na\nb\t1\t2\n")),
    "an executable": ("x.txt", _holding(b"\x7fELF" + bytes(range(256)) * 100)),
    "Latin-1": ("x.txt", _holding("Dies irae, dies illa, solvet saeculum é".encode("latin-1"))),
    "overlong UTF-8": ("x.md", _holding(b"a \xc0\xaf b\n")),
    "gzip under another name": ("x.jsonl", _holding(gzip.compress(_LINE))),
    "plain text under gzip's name": ("x.jsonl.gz", _holding(_LINE)),
    "gzip cut short": ("x.jsonl.gz", _holding(gzip.compress(_LINE * 1000)[:-9])),
    "gzip with words behind": ("x.jsonl.gz", _holding(gzip.compress(_LINE) + b"words")),
    "gzip in gzip": ("x.jsonl.gz", _holding(gzip.compress(gzip.compress(_LINE)))),
    "gzip with a wrong sum": ("x.jsonl.gz", _holding(gzip.compress(_LINE)[:-8] + bytes(8))),
    "two ends of gzip": ("x.jsonl.gz.gz", _holding(gzip.compress(_LINE))),
    "gzip that bursts": ("x.jsonl.gz", _packed("gz", bytes(1 << 20), 1 << 10)),
    "zstd that bursts": ("x.jsonl.zst", _packed("zst", b"a" * (1 << 20), 3 << 10)),
    "zstd of a window of 2 GiB": ("x.jsonl.zst", _holding(b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00" + bytes(9))),
    "zstd cut short": ("x.jsonl.zst", _holding(zstandard.compress(_LINE * 1000)[:-5])),
    "xz cut short": ("x.jsonl.xz", _holding(lzma.compress(_LINE * 1000)[:-9])),
    "bz2 with a wrong sum": ("x.jsonl.bz2", _holding(bz2.compress(_LINE)[:-4] + bytes(4))),
    "a name in capitals": ("x.JSONL", _holding(_LINE * 20)),
    "a name without an ending": ("text", _holding(_LINE)),
    "a tar archive": ("x.tar", _tar),
    "a zip archive": ("x.zip", _zip),
    "a zip archive under another name": ("x.jsonl", _zip),
    "a page": ("x.html", _holding(b"<p>text</p>")),
    "a table of numbers": ("x.parquet", _table(pyarrow.array([1, 2]))),
    "a table of nulls": ("x.parquet", _table(pyarrow.array([None, None], pyarrow.string()))),
    "a table of bytes": ("x.parquet", _table(pyarrow.array([b"\xff\xfe", b"a"]))),
    "a table of structs": ("x.parquet", _table(pyarrow.array([{"a": [{"b": "c"}]}]))),
    "a table without rows": ("x.parquet", _table(pyarrow.array([], pyarrow.string()))),
    "a table without columns": ("x.parquet", lambda path: parquet.write_table(pyarrow.table({}), path)),
    "a table with a column of no name": ("x.parquet", _table(pyarrow.array(["a"]), names=("",))),
    "a table cut short": ("x.parquet", _damaged_table(lambda content: content[:-20])),
    "a table without its middle": ("x.parquet", _damaged_table(lambda content: content[:100] + content[-400:])),
    "a table with noise in it": ("x.parquet", _damaged_table(lambda content: content[:20] + bytes(60) + content[80:])),
    "a table with a footer of 4 GiB": ("x.parquet", _damaged_table(lambda c: c[:-8] + b"\xff\xff\xff\x7f" + c[-4:])),
    "a table of one cell, 1,000 times": ("x.parquet", _repeated_cells),
}  # fmt: skip


def _touched(path: Path) -> Path:
    path.touch()
    return path


def _links(folder: Path) -> None:
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    (folder / "a.jsonl").symlink_to("b.jsonl")
    (folder / "b.jsonl").symlink_to("a.jsonl")


def _bound_socket(folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)  # a socket's name is short
    socket.socket(socket.AF_UNIX).bind("x.jsonl")
    os.chdir(before)


def _deep(folder: Path) -> None:
    for _ in range(400):
        folder = folder / "d"
        folder.mkdir()
    (folder / "x.jsonl").write_bytes(_LINE)


# What a folder of sources holds beside a sound file.
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "a pipe": lambda folder: os.mkfifo(folder / "x.jsonl"),
    "a socket": _bound_socket,
    "an endless device": lambda folder: (folder / "x.jsonl").symlink_to("/dev/zero"),
    "a device that waits": lambda folder: (folder / "x.jsonl").symlink_to("/dev/tty"),
    "links in circles": _links,
    "a link to the whole disk": lambda folder: (folder / "disk").symlink_to("/"),
    "a folder called x.jsonl": lambda folder: (folder / "x.jsonl").mkdir(),
    "an unreadable file": lambda folder: _touched(folder / "x.jsonl").chmod(0),
    "an unreadable folder": lambda folder: ((folder / "sub").mkdir(), (folder / "sub").chmod(0)),
    "10,000 files": lambda folder: [_touched(folder / f"{i}.jsonl") for i in range(10_000)],
    "folders 400 deep": _deep,
    "a name that is not UTF-8": lambda folder: (folder / "\udcff.jsonl").write_bytes(_LINE),
    "a name with a line end": lambda folder: (folder / "a\nb.jsonl").write_bytes(b"{"),
    "a name with an escape sequence": lambda folder: (folder / "\x1b[2J.jsonl").write_bytes(b"{"),
    "a dangling link": lambda folder: (folder / "x.jsonl").symlink_to("nowhere"),
    "a hidden file": lambda folder: (folder / ".x.jsonl").write_bytes(b"{"),
    "a file of kernel's memory": lambda folder: (folder / "x.txt").symlink_to("/proc/self/mem"),
    "a file that grows as it is read": lambda folder: (folder / "x.txt").symlink_to("/proc/self/status"),
}
PATTERNS = (
    *("**/**/**/**/**/*.jsonl", "[", "[!", "{a,b}.jsonl", "*" * 3000, "~nobody/x", "$HOME", "/**/*.nothing"),
    *("**", "*", "?" * 300, "[a-", "\\*", "//", "~", "-", "--input", ".", "..", "./../in/../in"),
)  # fmt: skip

Reader = Callable[[World, Path | str], Command]
READERS: dict[str, Reader] = {
    "tokenizer train": lambda _, path: stellarbyte(
        *("tokenizer", "train", "--vocab-size", "300", "--output", "trained", "--input", path)
    ),
    "prepare": lambda world, path: stellarbyte(
        "prepare", world.run_yaml(), "--data.shards=shards", f"--data.sources.0.path={path}"
    ),
    "data preview": lambda world, path: torch(
        "data", "preview", world.finetune_yaml(), f"--data.sources.0.path={path}"
    ),
    "finetune": lambda world, path: torch("finetune", world.finetune_yaml(), f"--data.sources.0.path={path}"),
}
# What is read -> why it is right that a command takes it.
_TEXT = "it is text, whatever it may be worth"
_TOLD = "what is no text is left out, and told"
ACCEPTED: dict[str, str] = {
    "texts of NUL (data preview)": "a character like others, shown as harmless",
    "texts of no character": "a code point like others",
    "texts of special tokens": "their names in a text are text",
    "texts of one letter, 3 MB": _TEXT,
    "texts of blanks alone, 3 MB": _TEXT,
    "texts of line ends alone, 3 MB": _TEXT,
    "texts of accents on one letter": _TEXT,
    "a name in capitals": "an ending is one in capitals, too",
    "a pipe": _TOLD,
    "a socket": _TOLD,
    "an endless device": _TOLD,
    "a device that waits": _TOLD,
    "links in circles": _TOLD,
    "a link to the whole disk": "a folder that is linked is not followed, and told",
    "a folder called x.jsonl": "a folder is looked through",
    "a name that is not UTF-8": "a name is no text",
    "10,000 files": "files of nothing hold no records",
    "folders 400 deep": "a folder is looked through",
    "a hidden file": _TOLD,
    "a dangling link": _TOLD,
    "a file of kernel's memory": _TOLD,
    "a file that grows as it is read": "what it holds now is text",
    "a table of one cell, 1,000 times (prepare)": _TEXT,
    "a table of one cell, 1,000 times (tokenizer train)": _TEXT,
}


def cases() -> Cases:
    """Each file for one of the commands that read sources, in turn; some take a second one."""
    turns = cycle(READERS)
    for what, (name, write) in FILES.items():
        for command in (next(turns), next(turns)):
            yield _case(what, command, lambda world, name=name, write=write: _file(world, name, write))
        next(turns)
    for what, fill in FOLDERS.items():
        command = next(turns)
        yield _case(what, command, lambda world, fill=fill: _folder(world, fill), nobody="unread" in what)
    for pattern in PATTERNS:
        command = next(turns)
        yield _case(f"the pattern {pattern[:40]}", command, lambda _, pattern=pattern: pattern)


def _file(world: World, name: str, write: Callable[[Path], None]) -> Path:
    path = world.folder / name
    write(path)
    return path


def _folder(world: World, fill: Callable[[Path], Any]) -> Path:
    folder = world.folder / "sources"
    folder.mkdir()
    (folder / "sound.jsonl").write_bytes(_LINE * 30)
    fill(folder)
    return folder


def _case(what: str, command: str, make: Callable[[World], Path | str], nobody: bool = False) -> Case:
    def made(world: World) -> Command:
        ready = READERS[command](world, make(world))
        return Command(ready.program, ready.arguments, nobody=nobody)

    reason = ACCEPTED.get(f"{what} ({command})", ACCEPTED.get(what, ""))
    return Case("records", f"{what} ({command})", made, reason, either=True)

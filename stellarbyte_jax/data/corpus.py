"""Finds the files of a source of text and streams their documents, always in the same order."""

import glob
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from stellarbyte.errors import UserError
from stellarbyte.files import written_whole
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data.compression import COMPRESSIONS
from stellarbyte_jax.data.documents import BadRecords, Document, RecordText
from stellarbyte_jax.data.record_files import FORMATS, file_format, read_documents

_SUPPORTED = f"use {' '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)}"

# Of the standard library: tests, what others installed into it, and what differs from machine to machine.
_STDLIB_WITHOUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})
_STDLIB_WITHOUT_FILES = "_sysconfigdata"


def source_files(source: SourceConfig) -> list[Path]:
    """Files of a source, sorted by path: the file itself, a folder searched whole, or what a glob matches.

    In a folder, hidden files and those of other formats are passed over.

    Raises:
        UserError: nothing is there, or a file that was asked for has an unsupported format.
    """
    path = Path(source.path).expanduser()
    if path.is_file():
        found = [path]
    elif path.is_dir():
        found = [file for file in _files_below(path) if file_format(file) is not None]
        if not found:
            raise UserError(f"the folder {path} holds no file that can be read: {_SUPPORTED}")
    elif glob.has_magic(str(path)):
        matches = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise UserError(f"no file matches {path}: check the pattern, which is relative to {Path.cwd()}")
    else:
        raise UserError(f"{path} does not exist: check the path, which is relative to {Path.cwd()}")
    for file in found:
        if file_format(file) is None:
            raise UserError(f"{file} has an unsupported format: {_SUPPORTED}")
    return sorted(found, key=Path.as_posix)


def documents(
    source: SourceConfig,
    on_bad_record: Literal["fail", "skip"] = "fail",
    report: Callable[[str], None] = print,
) -> Iterator[Document]:
    """Stream a source's documents; bad records end the stream, or are skipped and counted to `report` at its end.

    Raises:
        UserError: a file is missing or cannot be read, a record is bad, or the source holds no text at all.
    """
    record_text, bad_records = RecordText(source), BadRecords(on_bad_record)
    empty = True
    for path in source_files(source):
        for document in read_documents(path, record_text, bad_records):
            empty = False
            yield document
    summary = bad_records.summary()
    if summary is not None:
        report(summary)
    if empty:
        raise UserError(f"{source.path} holds no text: name a source that has some")


def stdlib_sources() -> Iterator[tuple[str, str]]:
    """Path and text of each file of this machine's Python standard library, tests left out, sorted by path.

    Raises:
        UserError: the library lies here without its sources.
    """
    library = Path(sysconfig.get_paths()["stdlib"])
    empty = True
    for file in _files_below(library, _STDLIB_WITHOUT):
        if file.suffix != ".py" or file.name.startswith(_STDLIB_WITHOUT_FILES):
            continue
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:  # a few old files declare another encoding; the corpus is UTF-8
            continue
        if text.strip():
            yield file.relative_to(library).as_posix(), text
            empty = False
    if empty:
        raise UserError(f"the Python standard library at {library} has no source files: name a corpus of your own")


def write_stdlib_corpus(path: str | Path) -> int:
    """Write this machine's Python standard library, without its tests, as {"path", "text"} lines; returns how many.

    Raises:
        UserError: the library lies here without its sources, or the file cannot be written.
    """
    return write_records(path, ({"path": name, "text": text} for name, text in stdlib_sources()))


def write_records(path: str | Path, records: Iterable[Mapping[str, object]]) -> int:
    """Write records as JSON lines, whole or not at all; returns how many.

    Raises:
        UserError: the name does not end in .jsonl, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"{path} is to hold JSON lines: let its name end in .jsonl")
    count = 0
    with written_whole(path) as output:
        for record in records:
            output.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _files_below(folder: Path, without: frozenset[str] = frozenset()) -> list[Path]:
    """Every file below a folder, hidden ones and folders named in `without` left out, sorted by path."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}")

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
        found.extend(Path(parent, name) for name in names if not name.startswith("."))
    return sorted(found, key=Path.as_posix)

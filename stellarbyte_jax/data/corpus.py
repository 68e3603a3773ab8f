"""Streams the documents of sources, and makes a corpus of the standard library, which every machine has."""

import hashlib
import json
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of, written_whole
from stellarbyte.records.bad_records import BadRecords
from stellarbyte.records.sources import files_of_sources, status_of
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data.documents import Document, RecordText, read_documents

# Parts of the standard library that are left out: tests, packages that were installed into it, and files that differ
# from machine to machine. pydoc_data is one long text, which would be nearly all of a validation split that it is in.
_STDLIB_WITHOUT = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
)
_STDLIB_WITHOUT_FILES = "_sysconfigdata"


def documents(
    sources: Sequence[SourceConfig],
    on_bad_record: Literal["fail", "skip"] = "fail",
    report: Callable[[str], None] = print,
    setting: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Document]:
    """Streams the documents of sources. A bad record ends the stream, or is skipped; `report` then gets their number.

    setting: the name by which the user knows `on_bad_record`; None if users cannot set it. progress: called with (bytes
    read, bytes of all files), both as stored.

    Raises:
        UserError: a file is missing or cannot be read, a record is bad, or the sources hold no text at all.
    """
    record_texts, bad_records = [RecordText(source) for source in sources], BadRecords(on_bad_record, setting=setting)
    empty = True
    files = files_of(sources, report)
    sizes = [status_of(path).st_size for _, path in files]
    done, total = 0, sum(sizes)
    for (index, path), size in zip(files, sizes, strict=True):
        for document in read_documents(path, record_texts[index], bad_records):
            empty = False
            yield document
            if progress is not None:
                progress(done + document.bytes_read, total)
        done += size
    summary = bad_records.summary()
    if summary is not None:
        report(summary)
    if empty:
        raise UserError(f"{', '.join(source.path for source in sources)} holds no text: name a source that has some")


def files_of(sources: Sequence[SourceConfig], report: Callable[[str], None]) -> list[tuple[int, Path]]:
    """(index of its source, path) for each file of the sources; see files_of_sources."""
    return files_of_sources([(source.path, (source.fields, source.template)) for source in sources], report)


def stdlib_sources() -> Iterator[tuple[str, str]]:
    """(path, text) of each file of this machine's standard library without tests and pydoc's texts, sorted by path.

    Raises:
        UserError: this machine has the library without its sources.
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


def write_stdlib_corpus(path: str | Path, *, force: bool = False) -> int:
    """Writes this machine's standard library, without its tests, as {"path", "text"} lines; returns their number.

    Raises:
        UserError: this machine has the library without its sources, or write_records refuses the file.
    """
    return write_records(path, ({"path": name, "text": text} for name, text in stdlib_sources()), force=force)


def write_records(path: str | Path, records: Iterable[Mapping[str, object]], *, force: bool = False) -> int:
    """Writes all records as JSON lines, or no file at all; returns the number of records.

    Raises:
        UserError: the name does not end in .jsonl, a file of other content is there and `force` is not given, or the
            file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".jsonl":
        raise UserError(f"{path} is to hold JSON lines: let its name end in .jsonl")
    count, written = 0, hashlib.sha256()
    with written_whole(path) as output:
        for record in records:
            line = json.dumps(record, ensure_ascii=False) + "\n"
            output.write(line)
            written.update(line.encode())
            count += 1
        if not force and path.is_file() and sha256_of(path) != written.hexdigest():
            raise UserError(f"{path} is there and holds something else: name another file, or replace it with --force")
    return count


def _files_below(folder: Path, without: frozenset[str] = frozenset()) -> list[Path]:
    """All files below a folder, sorted by path, except hidden ones and those in folders named in `without`."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}")

    found: list[Path] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in without]
        found.extend(Path(parent, name) for name in names if not name.startswith("."))
    return sorted(found, key=Path.as_posix)

"""Finds documents, and reads each as passages."""

import codecs
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from stellarbyte.errors import UserError, shown_path
from stellarbyte.memory.ingest.html_page import html_sections
from stellarbyte.memory.ingest.markdown import markdown_sections
from stellarbyte.memory.ingest.passages import Block, Passage, Section, cut, lines_of, paragraphs
from stellarbyte.memory.ingest.pdf import pdf_sections
from stellarbyte.memory.ingest.python_code import python_sections
from stellarbyte.reading import expanded
from stellarbyte.records.bad_records import BadRecords, RecordError
from stellarbyte.records.formats import FORMATS, TEXT_FORMATS, file_format, read_records

HTML = (".html", ".htm", ".xhtml")
PDF = (".pdf",)
READ = (*FORMATS, *HTML, *PDF)
"""The suffixes of documents; those of texts and records may have a compression's after them."""

_MOST_BYTES = 32 << 20  # of a page of HTML
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_CHARSET = re.compile(rb"charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.I)
# The encodings that pages have been written in, by the names that Python knows them by.
_ENCODINGS = {
    *("utf-8", "gb2312", "gbk", "gb18030", "big5", "shift_jis", "euc_jp", "iso2022_jp", "euc_kr", "koi8-r"),
    *(f"iso8859-{number}" for number in range(1, 16)),
    *(f"cp{number}" for number in range(1250, 1259)),
}


def documents(paths: Sequence[str], bad: BadRecords) -> Iterator[Path]:
    """The files of these names, each once, and those below these folders whose suffix says that they are documents.

    Hidden files and folders below a folder are left out, and so are links to folders.

    Args:
        paths: files and folders.
        bad: hears of what is not there, and of a file that no suffix makes a document.

    Raises:
        UserError: there is one, and `bad` does not skip it.
    """
    seen: set[Path] = set()
    for name in paths:
        path = expanded(name)
        try:
            found = sorted(_below(path)) if path.is_dir() else [path] if path.exists() else None
        except (OSError, ValueError) as error:
            bad.add(f"{shown_path(path)} cannot be read ({error})")
            continue
        if found is None:
            bad.add(f"{shown_path(path)} is not there")
            continue
        for file in found:
            if suffix_of(file) is None:
                bad.add(f"{shown_path(file)} is no document that can be read: {', '.join(READ)} are")
            elif file.resolve() not in seen:
                seen.add(file.resolve())
                yield file


def passages_of(path: Path, bad: BadRecords) -> list[Passage]:
    """A document's passages, in its order.

    bad: hears of single records of a file of records.

    Raises:
        RecordError: the file as a whole cannot be read.
        UserError: a record is bad, and `bad` does not skip it.
        ModuleNotFoundError: what reads this kind of file is not installed.
    """
    suffix = suffix_of(path)
    try:
        if suffix in PDF:
            sections = pdf_sections(path)
        elif suffix in HTML:
            sections = html_sections(_page(path))
        elif suffix in TEXT_FORMATS:
            (record,) = read_records(path, _Whole())
            sections = _text_sections(record.fields["text"], suffix)
        else:
            return [
                passage for record in read_records(path, bad) for passage in _of_record(record.fields, record.where)
            ]
    except OSError as error:
        raise RecordError(f"{shown_path(path)} cannot be read: {error.strerror or error}") from None
    except _Refused as error:
        raise RecordError(str(error)) from None
    return list(cut(sections, shown_path(path)))


def suffix_of(path: Path) -> str | None:
    """The suffix that decides how a document is read, without a compression's; None for what is no document."""
    suffix = path.suffix.lower()
    return suffix if suffix in (*HTML, *PDF) else file_format(path)


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            if not name.startswith(".") and suffix_of(path) is not None and path.is_file():
                yield path


def _text_sections(text: str, suffix: str | None) -> list[Section]:
    if suffix == ".md":
        return markdown_sections(text)
    if suffix == ".py":
        return python_sections(text)
    return [Section(paragraphs(enumerate(lines_of(text), 1)))]


def _of_record(fields: dict[str, Any], where: str) -> list[Passage]:
    """A record's passages: its text, what its messages say, or else all its fields that are texts or numbers."""
    text, messages = fields.get("text"), fields.get("messages")
    if not isinstance(text, str) and isinstance(messages, list):
        said = [message for message in messages if isinstance(message, dict)]
        lines = [f"{one.get('role')}: {one['content']}" for one in said if isinstance(one.get("content"), str)]
        text = "\n\n".join(lines)
    elif not isinstance(text, str):
        text = "\n".join(f"{name}: {value}" for name, value in fields.items() if isinstance(value, str | int | float))
    file, _, number = where.rpartition(":")
    line = int(number)
    blocks = tuple(Block(block.text, line, line) for block in paragraphs(enumerate(lines_of(text), 1)))
    return list(cut([Section(blocks)], file))


def _page(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise RecordError(f"{shown_path(path)} is larger than {_MOST_BYTES >> 20} MiB: cut it into several")
    named = _CHARSET.search(content[:2048])
    marked = next((encoding for mark, encoding in _MARKS.items() if content.startswith(mark)), None)
    encoding = marked or (_known(named[1].decode("ascii", "replace")) if named else "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise RecordError(f"{shown_path(path)} is no text in {encoding} (byte {error.start}), as it says") from None


def _known(name: str) -> str:
    """The encoding of a name, if it is one that pages are written in; a page's own word may name any of Python's."""
    try:
        found = codecs.lookup(name).name
    except LookupError:
        return "utf-8"
    return found if found in _ENCODINGS else "utf-8"


class _Refused(UserError):
    """What is wrong with a file of one record."""


class _Whole(BadRecords):
    """Bad records of a file that is one record: the file cannot be read."""

    def __init__(self) -> None:
        super().__init__("fail")

    def add(self, complaint: str) -> None:
        """Raises the complaint as it is."""
        raise _Refused(complaint)

"""Streams the documents of a file: makes documents of records, and cuts long documents into pieces."""

import math
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stellarbyte.errors import UserError, shown_path
from stellarbyte.records.bad_records import BadRecords, RecordError, check_text, kind_of, names_of
from stellarbyte.records.formats import TEXT_FORMATS, complaints, file_format, read_records
from stellarbyte.records.text import decoded_blocks, open_text
from stellarbyte_jax.config import SourceConfig

# Longer texts are cut into pieces, so that no single document decides the memory or leaves all cores but one idle.
PIECE_CHARS = 1 << 16

_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", "\\\\": "\\"}


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a piece of a long one.

    `origin` is "file:line", or "file:row" for parquet; `bytes_read` counts the bytes of its file, as stored, that are
    read so far; `begins` and `ends` say whether the text starts and stops with this piece.
    """

    text: str
    origin: str
    bytes_read: int
    begins: bool = True
    ends: bool = True


class RecordText:
    r"""Turns a record into its text: puts the chosen fields into the template, or joins them by blank lines.

    In a template \n, \t, \r and \\ are a line end, a tab, a carriage return and a backslash, because a shell and YAML's
    single quotes do not translate them.

    Raises:
        UserError: the template has a lone brace or an unknown escape, names something that is not in `fields`, or names
            no field at all.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.fields = source.fields
        self.template = None if source.template is None else _unescaped(source.template)
        # A template is taken apart into literal texts and field names: str.format would let it read attributes.
        self._parts: list[tuple[str, str | None]] = []
        if self.template is None:
            self._parts = [("\n\n" if index else "", field) for index, field in enumerate(self.fields)]
            return
        try:
            parsed = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise UserError(
                f"template {source.template!r} cannot be read ({error}): write fields as {{name}}, braces as {{{{ }}}}"
            ) from None
        for literal, name, format_spec, conversion in parsed:
            if name is not None and (name not in self.fields or format_spec or conversion):
                whole = name + (f"!{conversion}" if conversion else "") + (f":{format_spec}" if format_spec else "")
                raise UserError(
                    f"template {source.template!r} names {{{whole}}}, which is none of the fields {list(self.fields)}"
                )
            self._parts.append((literal, name))
        if not any(name for _, name in self._parts):
            raise UserError(
                f"template {source.template!r} names none of the fields {list(self.fields)}, so that all records would "
                "have the same text: write fields as {name}"
            )

    def __call__(self, record: object, where: str) -> str:
        """The text of a record that was found at `where`.

        Raises:
            RecordError: the record is not an object, lacks a field, or has a field that is not text. A number may be
                part of a text, but not all of it.
        """
        if not isinstance(record, Mapping):
            raise RecordError(f"{where} is not a JSON object but {kind_of(record)}")
        alone = self._parts == [("", self.fields[0])]
        for field in self.fields:
            if field not in record:
                raise RecordError(f"{where} lacks the field {field!r} (it has {names_of(record)})")
            value = record[field]
            if not (isinstance(value, str) or (_is_number(value) and not alone)):
                raise RecordError(f"{where} has {kind_of(value)} in the field {field!r}, not text")
        text = "".join(literal if field is None else f"{literal}{record[field]}" for literal, field in self._parts)
        return check_text(text, where)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _unescaped(template: str) -> str:
    parts = re.split(r"(\\.?)", template, flags=re.DOTALL)
    for index, escape in enumerate(parts):
        if index % 2:
            if escape not in _ESCAPES:
                raise UserError(
                    f"template {template!r} has {escape}, which is unknown: \\n is a line end, \\t a tab, \\r a "
                    "carriage return, and \\\\ a backslash"
                )
            parts[index] = _ESCAPES[escape]
    return "".join(parts)


def read_documents(
    path: Path, record_text: RecordText, bad_records: BadRecords, span: range | None = None
) -> Iterator[Document]:
    """The documents of a file, in order; empty ones are left out, long ones come in pieces.

    Memory is bounded: a text file of any length is streamed, and a record has at most record.MAX_RECORD_BYTES. span:
    see read_records.

    Raises:
        UserError: the file cannot be read, lacks a column, or holds a bad record that `bad_records` does not skip.
    """
    if file_format(path) in TEXT_FORMATS:
        with complaints(path, bad_records):
            yield from _read_text(path)
        return
    for record, where, bytes_read in read_records(path, bad_records, record_text.fields, span):
        try:
            text = record_text(record, where)
        except RecordError as error:
            bad_records.add(str(error))
            continue
        bad_records.empty += not text
        yield from documents_of([text], where, lambda bytes_read=bytes_read: bytes_read)  # type: ignore[misc]


def _read_text(path: Path) -> Iterator[Document]:
    # A bad file is skipped as a whole, so a long file is read to its end before its first piece is yielded.
    head: list[str] = []
    count = 0
    origin = f"{shown_path(path)}:1"
    with open_text(path) as (raw, stream):
        for count, block in enumerate(decoded_blocks(path, stream), 1):
            if count <= 2:
                head.append(block)
        if count <= len(head):
            yield from documents_of(head, origin, raw.tell)
            return
    with open_text(path) as (raw, stream):
        yield from documents_of(decoded_blocks(path, stream), origin, raw.tell)


def documents_of(blocks: Iterable[str], origin: str, bytes_read: Callable[[], int]) -> Iterator[Document]:
    """The document, or the pieces of a long one, of a text that comes block by block."""
    held: str | None = None  # a piece is held back until it is known whether another one follows
    begins = True
    for piece in pieces(blocks):
        if held is not None:
            yield Document(held, origin, bytes_read(), begins, ends=False)
            begins = False
        held = piece
    if held is not None:
        yield Document(held, origin, bytes_read(), begins, ends=True)


def pieces(blocks: Iterable[str], chars: int | None = None) -> Iterator[str]:
    """The text in pieces of at most `chars` characters, cut where the tokenizer cuts it too, if there is such a place.

    chars: by default PIECE_CHARS.
    """
    chars = chars or PIECE_CHARS
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > chars:
            end = _cut(text, start, start + chars)
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def _cut(text: str, start: int, limit: int) -> int:
    """The last place after `start`, at most `limit`, where a cut leaves the tokens as they are.

    The tokenizer's pattern always ends a match after a line end that no white space follows, and before a space that
    follows a letter. A text that has no such place is cut at `limit`: that may cost a token, but never a byte.
    """
    for separator, neighbour, cut in (("\n", 1, 1), (" ", -1, 0)):
        at = text.rfind(separator, start + 1, limit)
        while at > 0:
            if text[at + neighbour].isalnum() and at + cut > start:
                return at + cut
            at = text.rfind(separator, start + 1, at)
    return limit

"""What a document is: its text, where it comes from, how a record becomes one, and what happens to bad records."""

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stellarbyte.errors import UserError
from stellarbyte_jax.config import SourceConfig

# Longer texts go on in pieces, so that no single document decides the memory or leaves all cores but one idle.
PIECE_CHARS = 1 << 16

_FIRST_BAD_RECORDS = 5


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or a piece of a long one.

    `origin` is "file:line" (parquet: the row); `bytes_read` counts the bytes of its file, as stored, read so far;
    `begins` and `ends` say whether the text starts and stops with this piece.
    """

    text: str
    origin: str
    bytes_read: int
    begins: bool = True
    ends: bool = True


class RecordError(Exception):
    """What is wrong with one record, after its file:line; whether that ends the run is for BadRecords to say."""


class BadRecords:
    """Ends the run at the first bad record, or counts them and remembers the first few."""

    def __init__(self, policy: Literal["fail", "skip"], count: int = 0, first: Sequence[str] = ()) -> None:
        self.policy = policy
        self.count = count
        self.first = tuple(first)

    def add(self, complaint: str) -> None:
        """Take note of a record that `complaint` describes, starting with its file:line.

        Raises:
            UserError: the policy is to fail.
        """
        if self.policy == "fail":
            raise UserError(f"{complaint}: mend it, or set on_bad_record to skip")
        self.count += 1
        if len(self.first) < _FIRST_BAD_RECORDS:
            self.first = (*self.first, complaint)

    def summary(self) -> str | None:
        """One sentence that counts what was skipped and shows the first few; None if there was nothing."""
        if self.count == 0:
            return None
        more = "; …" if self.count > len(self.first) else ""
        return f"Skipped {self.count} bad record{'s' * (self.count > 1)}: {'; '.join(self.first)}{more}"


class RecordText:
    """Turns a record into its text: the chosen fields put into the template, or joined by blank lines without one.

    Raises:
        UserError: the template has a lone brace, or names what is not in `fields`.
    """

    def __init__(self, source: SourceConfig) -> None:
        self.fields = source.fields
        # A template becomes literal text and field names in turn: str.format would let it reach into attributes.
        self._parts: list[tuple[str, str | None]] = []
        if source.template is None:
            for index, field in enumerate(source.fields):
                self._parts.append(("\n\n" if index else "", field))
            return
        try:
            parsed = list(string.Formatter().parse(source.template))
        except ValueError as error:
            raise UserError(
                f"template {source.template!r} cannot be read ({error}): write fields as {{name}}, braces as {{{{ }}}}"
            ) from None
        for literal, name, format_spec, conversion in parsed:
            if name is not None and (name not in source.fields or format_spec or conversion):
                whole = name + (f"!{conversion}" if conversion else "") + (f":{format_spec}" if format_spec else "")
                raise UserError(
                    f"template {source.template!r} names {{{whole}}}, which is none of the fields {list(source.fields)}"
                )
            self._parts.append((literal, name))

    def __call__(self, record: object, where: str) -> str:
        """The text of a record that was found at `where`.

        Raises:
            RecordError: it is no object, lacks a field, or a field holds no text.
        """
        if not isinstance(record, Mapping):
            raise RecordError(f"{where} is not a JSON object but {kind_of(record)}")
        for field in self.fields:
            if field not in record:
                raise RecordError(f"{where} lacks the field {field!r} (it has {names_of(record)})")
            if isinstance(record[field], bool) or not isinstance(record[field], str | int | float):
                raise RecordError(f"{where} has {kind_of(record[field])} in the field {field!r}, not text")
        text = "".join(literal if field is None else f"{literal}{record[field]}" for literal, field in self._parts)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            kind = "a byte that is not UTF-8" if 0xDC80 <= code <= 0xDCFF else "a lone surrogate"
            raise RecordError(f"{where} holds {kind}, which is no character") from None
        return text

    def check_columns(self, columns: Sequence[str], name: str) -> None:
        """Refuse a table without the fields: no record of it could be read.

        Raises:
            UserError: naming the field and the columns that are there.
        """
        for field in self.fields:
            if field not in columns:
                raise UserError(f"{name}:1 has no column {field!r}: set the source's fields to some of {list(columns)}")


def kind_of(value: object) -> str:
    """How an error calls a value: null, a string, a list …"""
    names = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def names_of(record: Mapping[Any, object]) -> str:
    """How an error lists the fields of a record."""
    names = [str(name) for name in record]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "none"


def documents_of(blocks: Iterable[str], origin: str, bytes_read: Callable[[], int]) -> Iterator[Document]:
    """A text that comes block by block, as a document or, if it is long, in pieces of one."""
    held: str | None = None  # a piece waits for the next one, which tells whether it was the last
    begins = True
    for piece in pieces(blocks):
        if held is not None:
            yield Document(held, origin, bytes_read(), begins, ends=False)
            begins = False
        held = piece
    if held is not None:
        yield Document(held, origin, bytes_read(), begins, ends=True)


def pieces(blocks: Iterable[str]) -> Iterator[str]:
    """Text in pieces of at most PIECE_CHARS, cut where the tokenizer would cut it too, if there is such a place."""
    text = ""
    for block in blocks:
        text += block
        start = 0
        while len(text) - start > PIECE_CHARS:
            end = _cut(text, start, start + PIECE_CHARS)
            yield text[start:end]
            start = end
        text = text[start:]
    if text:
        yield text


def _cut(text: str, start: int, limit: int) -> int:
    """The last place after `start`, at most `limit`, where a cut leaves the tokens as they are.

    The tokenizer's pattern always ends a match after a line end that no white space follows, and before a space that
    follows a letter. A text that has neither for so long is cut at `limit`: that may cost a token, never a byte.
    """
    for separator, neighbour, cut in (("\n", 1, 1), (" ", -1, 0)):
        at = text.rfind(separator, start + 1, limit)
        while at > 0:
            if text[at + neighbour].isalnum() and at + cut > start:
                return at + cut
            at = text.rfind(separator, start + 1, at)
    return limit

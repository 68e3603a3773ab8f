"""Reads JSON records: one a line, or the items of a list, of which only one at a time is held in memory."""

import codecs
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from stellarbyte.errors import shown_path
from stellarbyte.records import record
from stellarbyte.records.bad_records import BadRecords, RecordError
from stellarbyte.records.compression import BLOCK_BYTES
from stellarbyte.records.record import Record, has_twice, too_long
from stellarbyte.records.text import decoded_blocks, not_utf8, open_text

# Each list or object takes about a hundred bytes of memory, however short it is in the file.
_MOST_CONTAINERS = 4_000_000

# The longest token that the end of a block may cut in two: an escaped character outside the first 65,536.
_LONGEST_SIGN = 12


# Stands for an item that is longer than a record may be, but whose end is known.
_TOO_LONG = object()


class _Twice(dict[str, Any]):
    """An object that has a field twice, `name`; a plain dict would silently keep the last one."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        seen: set[str] = set()
        self.name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else _Twice(pairs)


# NaN is read as null, because pandas writes a missing text as NaN.
_CONSTANTS = {"NaN": None, "Infinity": float("inf"), "-Infinity": float("-inf")}
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_CONSTANTS.__getitem__)


def read_jsonl(
    path: Path, bad_records: BadRecords, _: Sequence[str] | None, span: range | None = None
) -> Iterator[Record]:
    """The records of a file with one a line; empty lines are skipped.

    span: of a file that is not compressed, the bytes in which the lines begin. Lines are then counted from there, and
        a record is at file:+1, unless the span begins with the file.
    """
    with open_text(path) as (raw, stream):
        number, sign = 0, ""
        if span is not None and span.start:
            sign = "+"
            stream.seek(span.start - 1)  # a line end there ends the line before the span
            _pass_over(stream, stream.readline(BLOCK_BYTES))
        while (span is None or stream.tell() < span.stop) and (line := stream.readline(record.MAX_RECORD_BYTES + 1)):
            number += 1
            where = f"{shown_path(path)}:{sign}{number}"
            if len(line) > record.MAX_RECORD_BYTES:
                _pass_over(stream, line)
                bad_records.add(too_long(where))
                continue
            if number == 1 and not sign:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            try:
                found = _record(_parse(line, where), where, raw)
            except RecordError as error:
                bad_records.add(str(error))
            else:
                yield found


def _pass_over(stream: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(BLOCK_BYTES)


def _record(fields: object, where: str, raw: BinaryIO) -> Record:
    if fields is _TOO_LONG:
        raise RecordError(too_long(where))
    if isinstance(fields, _Twice):
        raise RecordError(has_twice(where, fields.name))
    return Record(fields, where, raw.tell())


def _parse(line: bytes, where: str) -> object:
    if line.count(b"[") + line.count(b"{") > _MOST_CONTAINERS:
        raise RecordError(_too_many(where))
    try:
        return _DECODER.decode(line.decode())
    except UnicodeDecodeError as error:
        raise not_utf8(where, error) from None
    except json.JSONDecodeError as error:
        raise RecordError(f"{where} is not valid JSON ({error.msg} at column {error.colno})") from None
    except (RecursionError, ValueError) as error:
        raise _unreadable(where, error) from None


def _unreadable(where: str, error: Exception) -> RecordError:
    """The error for JSON that Python does not read: nested too deep, or with an integer of thousands of digits."""
    reason = "it is nested too deep" if isinstance(error, RecursionError) else str(error).split(";")[0]
    return RecordError(f"{where} is not JSON that can be read ({reason})")


def _too_many(where: str) -> str:
    return f"{where} is a record of more than {_MOST_CONTAINERS} lists and objects, the most that is read"


def read_json(path: Path, bad_records: BadRecords, _: Sequence[str] | None) -> Iterator[Record]:
    """The records of a file that holds a list of them, or a single object."""
    with open_text(path) as (raw, stream):
        # A syntax error ends the file, because nobody can tell where the next item would begin.
        for fields, where in _Items(decoded_blocks(path, stream), shown_path(path)):
            try:
                found = _record(fields, where, raw)
            except RecordError as error:
                bad_records.add(str(error))
            else:
                yield found


class _Items:
    """The items of a list, or one object, from a text that comes in blocks; each with the line that it starts on."""

    def __init__(self, blocks: Iterator[str], name: str) -> None:
        self._blocks, self._name = blocks, name
        self._text, self._at = "", 0
        self._line, self._counted = 1, 0  # the line of the place `_counted` in `_text`
        self._before = 0  # characters of its first line that are no longer in `_text`

    def __iter__(self) -> Iterator[tuple[object, str]]:
        if self._skip_space() != "[":
            yield self._parse()
        else:
            self._at += 1
            if self._skip_space() == "]":
                self._at += 1
            else:
                while True:
                    self._skip_space()
                    yield self._parse()
                    if self._expect(",", "]") == "]":
                        break
        if self._skip_space():
            raise self._invalid(self._at, "text after the end of the value")

    def _more(self) -> bool:
        """Drops the text already read, and reads as much again as is left, so that long items are not parsed too often.

        Returns whether there was any more text.
        """
        self._line_of(self._at)
        self._before = self._column_of(self._at)
        parts = [self._text[self._at :]]
        wanted, taken = len(parts[0]), 0
        self._text, self._at, self._counted = "", 0, 0
        for block in self._blocks:
            parts.append(block)
            taken += len(block)
            if taken >= wanted:
                break
        self._text = "".join(parts)
        return taken > 0

    def _line_of(self, at: int) -> int:
        """The line of a place in the text. Places must be asked for in ascending order."""
        self._line += self._text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def _column_of(self, at: int) -> int:
        begins = self._text.rfind("\n", 0, at) + 1
        return at - begins if begins else self._before + at

    def _skip_space(self) -> str:
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in " \t\r\n":
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def _parse(self) -> tuple[object, str]:
        where = f"{self._name}:{self._line_of(self._at)}"
        while True:
            try:
                item, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                cut_short = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _LONGEST_SIGN
                if not (cut_short and self._may_go_on(where)):
                    column = self._column_of(error.pos) + 1
                    raise self._invalid(error.pos, f"{error.msg} at column {column}") from None
            except (RecursionError, ValueError) as error:
                raise _unreadable(where, error) from None
            else:
                # An item at the end of a block may continue in the next one: 12 may be 123.
                if end < len(self._text) or not self._may_go_on(where):
                    length, self._at = end - self._at, end
                    return (_TOO_LONG if length > record.MAX_RECORD_BYTES else item), where

    def _may_go_on(self, where: str) -> bool:
        if len(self._text) - self._at > record.MAX_RECORD_BYTES:
            raise RecordError(too_long(where))
        return self._more()

    def _expect(self, *signs: str) -> str:
        found = self._skip_space()
        if found not in signs:
            name = repr(found) if found else "the end of the file"
            raise self._invalid(self._at, f"expected {' or '.join(signs)}, found {name}")
        self._at += 1
        return found

    def _invalid(self, at: int, reason: str) -> RecordError:
        return RecordError(f"{self._name}:{self._line_of(at)} is not valid JSON ({reason})")

"""Handles records that cannot be used, and names things in their errors."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stellarbyte.errors import UserError, first_of

_FIRST_BAD_RECORDS = 5


class RecordError(Exception):
    """One record is wrong: the sentence begins with its file:line. BadRecords decides whether it ends the run."""


class BadRecords:
    """Ends the run at the first bad record, or counts them and remembers the first few.

    `empty` counts the records without any text, which are left out but not bad. `setting` is the user's name for
    `policy`; None if users cannot choose it.
    """

    def __init__(
        self,
        policy: Literal["fail", "skip"],
        count: int = 0,
        first: Sequence[str] = (),
        empty: int = 0,
        setting: str | None = "on_bad_record",
    ) -> None:
        self.policy = policy
        self.count = count
        self.first = tuple(first)
        self.empty = empty
        self._setting = setting

    def add(self, complaint: str) -> None:
        """Notes a bad record. `complaint` describes it, beginning with its file:line.

        Raises:
            UserError: the policy is to fail.
        """
        if self.policy == "fail":
            choice = "" if self._setting is None else f", or set {self._setting} to skip"
            raise UserError(f"{complaint}: mend it{choice}")
        self.count += 1
        if len(self.first) < _FIRST_BAD_RECORDS:
            self.first = (*self.first, complaint)

    def summary(self) -> str | None:
        """One line with the number of skipped records and the first few of them; None if there are none."""
        lines = []
        if self.count:
            more = "; …" if self.count > len(self.first) else ""
            lines.append(f"Skipped {self.count} bad record{'s' * (self.count > 1)}: {'; '.join(self.first)}{more}")
        if self.empty:
            verb = "s hold" if self.empty > 1 else " holds"
            lines.append(f"{self.empty} record{verb} no text and {'were' if self.empty > 1 else 'was'} left out")
        return "; ".join(lines) or None


def check_text(text: str, where: str) -> str:
    """Returns the text found at `where` if it is valid.

    Raises:
        RecordError: it holds a byte or a surrogate that is not a character, or a NUL, as binary data and UTF-16 do.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        kind = "a byte that is not UTF-8" if 0xDC80 <= code <= 0xDCFF else "a lone surrogate"
        raise RecordError(f"{where} holds {kind}, which is no character") from None
    if "\0" in text:
        raise RecordError(f"{where} holds a NUL character: it is binary data or UTF-16, not UTF-8 text")
    return text


def kind_of(value: object) -> str:
    """The name of a value's kind in errors: null, a string, a list …"""
    names = {
        type(None): "null",
        bool: "true or false",
        str: "a string",
        bytes: "bytes",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def names_of(record: Mapping[Any, object]) -> str:
    """The names of a record's fields, as errors list them."""
    return first_of(list(record), 8) if record else "none"

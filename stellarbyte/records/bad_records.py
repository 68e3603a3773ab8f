"""What happens to records that cannot be used, and how their errors name things."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stellarbyte.errors import UserError

_FIRST_BAD_RECORDS = 5


class RecordError(Exception):
    """What is wrong with one record, after its file:line; whether that ends the run is for BadRecords to say."""


class BadRecords:
    """Ends the run at the first bad record, or counts them and remembers the first few.

    `empty` counts the records that hold no text at all: they are left out, but not bad. `setting` is the name by which
    the user knows `policy`.
    """

    def __init__(
        self,
        policy: Literal["fail", "skip"],
        count: int = 0,
        first: Sequence[str] = (),
        empty: int = 0,
        setting: str = "on_bad_record",
    ) -> None:
        self.policy = policy
        self.count = count
        self.first = tuple(first)
        self.empty = empty
        self._setting = setting

    def add(self, complaint: str) -> None:
        """Takes note of a record that `complaint` describes, starting with its file:line.

        Raises:
            UserError: the policy is to fail.
        """
        if self.policy == "fail":
            raise UserError(f"{complaint}: mend it, or set {self._setting} to skip")
        self.count += 1
        if len(self.first) < _FIRST_BAD_RECORDS:
            self.first = (*self.first, complaint)

    def summary(self) -> str | None:
        """One line that counts what was skipped and shows the first few; None if there was nothing."""
        lines = []
        if self.count:
            more = "; …" if self.count > len(self.first) else ""
            lines.append(f"Skipped {self.count} bad record{'s' * (self.count > 1)}: {'; '.join(self.first)}{more}")
        if self.empty:
            verb = "s hold" if self.empty > 1 else " holds"
            lines.append(f"{self.empty} record{verb} no text and {'were' if self.empty > 1 else 'was'} left out")
        return "; ".join(lines) or None


def check_text(text: str, where: str) -> str:
    """Returns the text that was found at `where`, if it is one.

    Raises:
        RecordError: it holds what is no character, or the NUL that binary data and UTF-16 are full of.
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
    """How an error calls a value: null, a string, a list …"""
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
    """How an error lists the fields of a record."""
    names = [str(name) for name in record]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "") if names else "none"

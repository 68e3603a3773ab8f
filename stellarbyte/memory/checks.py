"""Checks that what is given to a memory is a text that each of its databases can hold."""

from stellarbyte.errors import UserError, shown

_LONGEST = 100_000


def checked_text(text: str, name: str) -> str:
    """The text; `name` is what errors call it. Raises UserError: no database can hold it, or it is too long."""
    if not isinstance(text, str):
        raise UserError(f"{name} {shown(text)} must be a text")
    if len(text) > _LONGEST:
        raise UserError(f"{name} has {len(text):,} characters, more than {_LONGEST:,}: cut it into passages")
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise UserError(f"{name} {shown(text)} holds a character that is no text: leave it out")
    return text


def checked_time(value: float | None, name: str) -> float | None:
    """A time in seconds since 1970. Raises UserError: it is none."""
    if value is not None and not (isinstance(value, int | float) and 0 <= value < 1e11):
        raise UserError(f"{name} {shown(value)} must be seconds since 1970")
    return value


def stated(text: str) -> str:
    """A text to remember, without spaces around it. Raises UserError: it is empty, or `checked_text` refuses it."""
    text = checked_text(text, "text").strip()
    if not text:
        raise UserError("the text is empty: write what to remember")
    return text

"""The one exception that tells a user what to change, and functions that show users' values in its sentences."""

import re
from collections.abc import Sequence
from pathlib import Path

# Longer values fill the terminal and hide the sentence around them.
_MOST_SHOWN = 80

# A longer word of a sentence is cut as well; more of its end is kept, which says more about a path.
_LONG_WORD = re.compile(r"(\S{150})\S{100,}(\S{250})")
_LONGEST = 4000


class UserError(ValueError):
    """A mistake that the user can correct: one sentence with the field (or file:line, or key), its value and the fix.

    The command lines print it without a traceback.
    """


def shown(value: object) -> str:
    """A value for an error's sentence: on one line, a container by its kind alone, a long value cut in the middle."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and value.bit_length() > 4096:  # Python refuses to write out the longest
        return f"an integer of about {round(value.bit_length() * 0.30103)} digits"
    if isinstance(value, str) and len(value) > 2 * _MOST_SHOWN:
        value = value[:_MOST_SHOWN] + value[-_MOST_SHOWN:]
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN // 2]}…{text[-_MOST_SHOWN // 4 :]}"


def in_full(value: object) -> str:
    """A value for a sentence about its items: in full if short, even a list or a mapping; otherwise as `shown`."""
    if isinstance(value, int) and value.bit_length() > 300:
        return shown(value)
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 100 else shown(value)


def first_of(items: Sequence[object], most: int) -> str:
    """The first items of a list, at most `most`, for a sentence; "…" stands for the others."""
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")


def shown_path(path: str | Path) -> str:
    r"""A path for people to read: bytes that are not UTF-8 and unprintable characters are written as \xff or \n."""
    name = str(path)
    if name.isprintable():
        return name
    return "".join(
        character
        if character.isprintable()
        else f"\\x{ord(character) - 0xDC00:02x}"
        if 0xDC80 <= ord(character) <= 0xDCFF
        else character.encode("unicode_escape").decode()
        for character in name
    )


def one_line(sentence: str) -> str:
    """A sentence that is safe to print: no name in it can start a new line or send commands to the terminal."""
    line = "".join(character if character.isprintable() else repr(character)[1:-1] for character in sentence)
    line = _LONG_WORD.sub(r"\1…\2", line)
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]}…{line[-_LONGEST // 4 :]}"

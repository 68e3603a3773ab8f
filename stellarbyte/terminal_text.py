"""Makes text of unknown origin fit to be printed on a terminal."""

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def harmless(text: str) -> str:
    r"""The text with control characters written as \x1b: it cannot command the terminal, or end a colour."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)

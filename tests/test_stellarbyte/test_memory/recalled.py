"""Entries as a search finds them, that the tests of what is recalled share."""

from stellarbyte.memory.entries import Entry, Found

NOON = 1_780_000_000.0


def found(text: str, source: str = "notes.md:1-2", number: int = 1) -> Found:
    entry = Entry(number, text, source, "", "passage", "en", NOON, NOON, None, 0, 1, None)
    return Found(entry, score=0.9)

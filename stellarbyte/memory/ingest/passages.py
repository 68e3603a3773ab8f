"""Passages, and how sections of a document become passages of about one size."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MOST_WIDTH = 1000
"""The widest passage, without its heading: about 250 tokens of English or 500 characters of Chinese."""

_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])")
_WIDE = {"W", "F"}


@dataclass(frozen=True)
class Passage:
    """A piece of a document, and where it stands: "FILE:first-last", "FILE:line" or "FILE#page=3"."""

    text: str
    source: str


@dataclass(frozen=True)
class Block:
    """What is not to be cut, if it fits: a paragraph, a list, a piece of code. first and last are its lines, from 1."""

    text: str
    first: int
    last: int


@dataclass(frozen=True)
class Section:
    """Blocks under one heading, of which a passage holds as many as fit.

    Attributes:
        blocks: in their order.
        heading: the names of the chapters or classes that they are in, "" for none; each passage begins with it.
        page: the page that they stand on, where a document has pages; it stands for their lines.
    """

    blocks: tuple[Block, ...]
    heading: str = ""
    page: int | None = None


def width(text: str) -> int:
    """The number of characters, of which those of Chinese, Japanese and Korean count twice."""
    return len(text) if text.isascii() else sum(1 + (unicodedata.east_asian_width(c) in _WIDE) for c in text)


def cut(sections: Iterable[Section], file: str) -> Iterator[Passage]:
    """The passages of a document's sections.

    file: the document's name, for their sources.
    """
    for section in sections:
        waiting: list[Block] = []
        for block in section.blocks:
            for piece in _pieces(block):
                if waiting and sum(width(b.text) for b in (*waiting, piece)) > MOST_WIDTH:
                    yield _passage(section, waiting, file)
                    waiting = []
                waiting.append(piece)
        if waiting:
            yield _passage(section, waiting, file)


def lines_of(text: str) -> list[str]:
    """The lines as editors and Python count them, without their ends; other separators of Unicode end none."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def paragraphs(lines: Iterable[tuple[int, str]]) -> tuple[Block, ...]:
    """The blocks that blank lines divide numbered lines into."""
    blocks: list[Block] = []
    here: list[tuple[int, str]] = []
    for number, line in [*lines, (0, "")]:
        if line.strip():
            here.append((number, line.rstrip()))
        elif here:
            blocks.append(Block("\n".join(text for _, text in here), here[0][0], here[-1][0]))
            here = []
    return tuple(blocks)


def _passage(section: Section, blocks: list[Block], file: str) -> Passage:
    body = "\n\n".join(block.text for block in blocks)
    first, last = blocks[0].first, blocks[-1].last
    lines = f"{first}" if first == last else f"{first}-{last}"
    where = f":{lines}" if section.page is None else f"#page={section.page}"
    return Passage(f"{section.heading}\n{body}" if section.heading else body, f"{file}{where}")


def _pieces(block: Block) -> Iterator[Block]:
    """The block itself, or, if it is too wide, pieces of it: of lines, of sentences in a line, of whatever fits."""
    if width(block.text) <= MOST_WIDTH:
        yield block
        return
    lines = block.text.split("\n")
    # A block of HTML or of a record has other lines than its text: then all pieces stand where it does.
    numbered = len(lines) == block.last - block.first + 1
    here: list[str] = []
    first = 0
    for index, line in enumerate(lines):
        if here and width("\n".join([*here, line])) > MOST_WIDTH:
            yield _piece(block, here, first, numbered)
            here, first = [], index
        if width(line) <= MOST_WIDTH:
            here.append(line)
            continue
        for part in _of_a_line(line):
            yield _piece(block, [part], index, numbered)
        here, first = [], index + 1
    if here:
        yield _piece(block, here, first, numbered)


def _piece(block: Block, lines: list[str], index: int, numbered: bool) -> Block:
    if not numbered:
        return Block("\n".join(lines), block.first, block.last)
    return Block("\n".join(lines), block.first + index, block.first + index + len(lines) - 1)


def _of_a_line(line: str) -> Iterator[str]:
    """Parts of a line that is too wide: sentences as far as they fit, else words, else characters."""
    here = ""
    for sentence in _SENTENCE_ENDS.split(line):
        for word in [sentence] if width(sentence) <= MOST_WIDTH else _words(sentence):
            joined = f"{here} {word}" if here and here[-1].isascii() else here + word
            if here and width(joined) > MOST_WIDTH:
                yield here
                joined = word
            here = joined
    if here.strip():
        yield here


def _words(sentence: str) -> Iterator[str]:
    for word in sentence.split():
        while width(word) > MOST_WIDTH:
            end = MOST_WIDTH if word.isascii() else MOST_WIDTH // 2
            yield word[:end]
            word = word[end:]
        yield word

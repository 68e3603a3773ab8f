"""Text that comes back, and text as it is: `python -m tests.recalling_text CORPUS.jsonl FOLDER`.

What is measured of a pruned cache means little if the model never looks far back, and text as it is teaches that late.
So documents are made whose passages come back word for word. FOLDER/train gets

- short.jsonl: a few random words of a document, four to seven times. There the heads that look for what stood before
  are found within 600 steps of 1,024 tokens; without it, not within 4,000.
- recalling.jsonl: passages of three words to some hundred tokens, as much text of each doubling of their length, which
  come back whole or in part; half of them with their words in another order, which nothing tells but what came before.
- notes.jsonl: docstrings and comments in any order, in each of EDITIONS another. Each is understood without the others,
  as the pieces of a chat are. In most documents notes break off, and a line that stood before comes back.

FOLDER/held_out has notes.jsonl, plain.jsonl (documents as they are) and recalling.jsonl (the long ones alone, with
words in their order) of other documents; nothing comes back in its notes but what does so by itself.
"""

import argparse
import ast
import json
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

# Words of a passage; some 400 tokens at most. A passage comes back so many times at most.
FEWEST_WORDS, MOST_WORDS, MOST_RETURNS = 3, 150, 3
# Passages of a document: one, or several, from which lines of any come back.
MOST_PASSAGES = 6
# Documents of short.jsonl, and characters of a few words.
SHORT_DOCUMENTS, LONGEST_SHORT = 90_000, 60
# Characters of the shortest note, and of the shortest document of notes: more than a row of tokens.
SHORTEST_NOTE, SHORTEST_NOTES = 60, 6000
# A line of so many characters that two notes have makes one of them no note of its own.
TELLING = 24
# The notes of the training text come so many times, in another order and with other lines that come back.
EDITIONS = 3
# The line that comes back stood within so many characters, and has at least so many.
REACH, SHORTEST_LINE = 3000, 50
# The share of documents of notes in which lines come back, and there the share of notes that one breaks off.
RECALLING, BROKEN_OFF = 0.75, 0.9
# One document of the corpus in so many is held out.
HELD_OUT = 4

_COMMENT = re.compile(r"(?m)(?:^ *# .*\n){2,}")


def pieces(text: str, rng: random.Random) -> Iterator[list[str]]:
    """The text in passages, each a list of lines; the last line of a passage is cut if it is too long."""
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    at = 0
    while at < len(lines):
        wanted = 1 / rng.uniform(1 / MOST_WORDS, 1 / FEWEST_WORDS)
        passage: list[str] = []
        while at < len(lines) and wanted > 0:
            count, left = len(lines[at].split()), max(FEWEST_WORDS, int(wanted))
            rest = lines[at].split(maxsplit=left)[left:]
            passage.append(lines[at].removesuffix("".join(rest)).rstrip() + "\n")
            wanted -= count
            at += 1
        yield passage


def recalling(passages: list[list[str]], rng: random.Random) -> str:
    """A document of passages, after each of which parts of it, or of an earlier one, come back."""
    told: list[str] = []
    for number, passage in enumerate(passages):
        told += passage
        for _ in range(rng.randint(1, MOST_RETURNS)):
            earlier = passages[rng.randint(0, number)]
            start = rng.randrange(len(earlier))
            told += earlier[start : rng.randint(start, len(earlier)) + 1]
    return "".join(told)


def shuffled(text: str, rng: random.Random) -> str:
    """The text with its words in another order, as many in each line as before."""
    lines = [line.split() for line in text.splitlines()]
    words = [word for line in lines for word in line]
    rng.shuffle(words)
    left = iter(words)
    return "".join(" ".join(next(left) for _ in line) + "\n" for line in lines)


def documents(text: str, rng: random.Random, fewest: int = 1) -> Iterator[str]:
    """Documents of one to MOST_PASSAGES passages of a text."""
    waiting: list[list[str]] = []
    wanted = rng.randint(fewest, MOST_PASSAGES)
    for passage in pieces(text, rng):
        waiting.append(passage)
        if len(waiting) >= wanted:
            yield recalling(waiting, rng)
            waiting, wanted = [], max(fewest, rng.choice((1, 1, MOST_PASSAGES)))


def short(text: str, rng: random.Random) -> Iterator[str]:
    """One to five words of a text at random, again and again."""
    words = text.split()
    rng.shuffle(words)
    while words:
        count = rng.randint(1, 5)
        few, words = " ".join(words[:count]), words[count:]
        if len(few) < LONGEST_SHORT:
            yield f"{few}\n" * rng.randint(4, 7)


def notes(text: str) -> Iterator[str]:
    """The docstrings of Python's source code, and its comments of two lines and more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old escapes in strings
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    for match in _COMMENT.finditer(text):
        yield "\n".join(line.strip().removeprefix("# ") for line in match[0].splitlines())


def unlike(pieces: list[str]) -> list[str]:
    """The notes that are long enough, and share no telling line with one before."""
    seen: set[str] = set()
    kept = []
    for piece in pieces:
        lines = {line.strip() for line in piece.splitlines() if len(line.strip()) >= TELLING}
        if len(piece) >= SHORTEST_NOTE and not lines & seen:
            kept.append(piece)
        seen |= lines
    return kept


def together(pieces: list[str], rng: random.Random, *, recalls: bool = False) -> Iterator[str]:
    """Documents of many notes in any order; `recalls`: with lines that come back in most of them."""
    document, is_recalling = "", False
    for piece in rng.sample(pieces, len(pieces)):
        lines = [line for line in document[-REACH:].splitlines()[1:] if len(line) >= SHORTEST_LINE]
        if is_recalling and lines and rng.random() < BROKEN_OFF:
            document += broken_off(piece, rng) + broken_off(rng.choice(lines), rng, from_end=True) + "\n\n"
        else:
            document += f"{piece}\n\n"
        if len(document) >= SHORTEST_NOTES:
            yield document
            document, is_recalling = "", recalls and rng.random() < RECALLING


def broken_off(text: str, rng: random.Random, *, from_end: bool = False) -> str:
    """The text up to the end of a word in it; from_end: from within its first third on."""
    if from_end:
        return text[rng.randrange(1 + len(text) // 3) :]
    return text[: text.find(" ", rng.randrange(len(text))) + 1]


def _texts(corpus: Path) -> Iterator[str]:
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what `stellarbyte corpus stdlib` has written")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    rng = random.Random(0)
    train: dict[str, list[str]] = {"short": [], "recalling": [], "notes": []}
    held_out: dict[str, list[str]] = {"recalling": [], "notes": [], "plain": []}
    for number, text in enumerate(_texts(options.corpus)):
        made = train if number % HELD_OUT else held_out
        made["notes"] += notes(text)
        if made is train:
            made["short"] += short(text, rng)
            made["recalling"] += [*documents(text, rng), *documents(shuffled(text, rng), rng)]
        else:
            made["plain"].append(text)
            made["recalling"] += documents(text, rng, MOST_PASSAGES)
    train["short"] = rng.sample(train["short"], min(SHORT_DOCUMENTS, len(train["short"])))
    train_notes = unlike(train.pop("notes"))
    train["notes"] = [text for _ in range(EDITIONS) for text in together(train_notes, rng, recalls=True)]
    held_out["notes"] = [*together(unlike(held_out["notes"]), rng)]
    for split, made in {"train": train, "held_out": held_out}.items():
        (options.folder / split).mkdir(parents=True, exist_ok=True)
        for name, texts in made.items():
            rng.shuffle(texts)
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            (options.folder / split / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Text that comes back: `python -m tests.recalling_text CORPUS.jsonl FOLDER`.

What is measured of a pruned cache means little if the model never looks far back, and text as it is teaches that late.
So documents are made whose passages come back word for word. The folder gets

- short.jsonl: a few random words of a document, four to seven times. There the heads that look for what stood before
  are found within 600 steps of 1,024 tokens; without it, not within 4,000.
- train.jsonl: passages of three words to some hundred tokens, as much text of each doubling of their length, which come
  back whole or in part; half of them with their words in another order, which nothing tells but what came before.
- of documents held out of both: recalling.jsonl (made like train.jsonl, the long ones alone, with words in their order)
  and plain.jsonl (as they are).
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

# Words of a passage; some 400 tokens at most. A passage comes back so many times at most.
FEWEST_WORDS, MOST_WORDS, MOST_RETURNS = 3, 150, 3
# Passages of a document: one, or several, from which lines of any come back.
MOST_PASSAGES = 6
# Documents of short.jsonl, and characters of a few words.
SHORT_DOCUMENTS, LONGEST_SHORT = 90_000, 60
# One document of the corpus in so many is held out.
HELD_OUT = 20


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


def _texts(corpus: Path) -> Iterator[str]:
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def main() -> None:
    """Writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="what `stellarbyte corpus stdlib` has written")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    rng = random.Random(0)
    options.folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, list[str]] = {"short": [], "train": [], "recalling": [], "plain": []}
    for number, text in enumerate(_texts(options.corpus)):
        if number % HELD_OUT:
            made["short"] += short(text, rng)
            made["train"] += [*documents(text, rng), *documents(shuffled(text, rng), rng)]
        else:
            made["recalling"] += documents(text, rng, MOST_PASSAGES)
            made["plain"].append(text)
    made["short"] = rng.sample(made["short"], min(SHORT_DOCUMENTS, len(made["short"])))
    rng.shuffle(made["train"])
    for name, texts in made.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (options.folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()

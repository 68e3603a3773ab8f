"""Text of which lines come back: `python -m tests.recalling_text CORPUS.jsonl FOLDER`.

What is measured of a pruned cache means little if the model never looks far back, and text as it is teaches that late.
So documents are made here in which passages of a document, from a single line to a thousand tokens, come back word for
word, whole or in part. Most of what such a row holds is then best told from what came before, and a model of a million
parameters learns within minutes to go on with a line as it went on before. The folder gets train.jsonl, and of
documents held out of it recalling.jsonl (made the same way) and plain.jsonl (as they are).
"""

import argparse
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

# Passages are as often in each doubling of their length; the longest has some 500 tokens.
MOST_LINES = 40
# A passage comes back so many times at most.
MOST_RETURNS = 3
# One document in so many is held out.
HELD_OUT = 20


def recalling(text: str, rng: random.Random) -> str:
    """The text with each passage of it followed by parts of itself."""
    told: list[str] = []
    lines = [line for line in text.splitlines(keepends=True) if line.strip()]
    at = 0
    while at < len(lines):
        passage = lines[at : at + int(math.exp(rng.uniform(0, math.log(MOST_LINES + 1))))]
        at += len(passage)
        told += passage
        for _ in range(rng.randint(1, MOST_RETURNS)):
            start = rng.randrange(len(passage))
            told += passage[start : rng.randint(start, len(passage)) + 1]
    return "".join(told)


def _documents(corpus: Path) -> Iterator[str]:
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
    names = ("train", "recalling", "plain")
    files = {name: (options.folder / f"{name}.jsonl").open("w", encoding="utf-8") for name in names}
    for number, text in enumerate(_documents(options.corpus)):
        made = recalling(text, rng)
        if number % HELD_OUT:
            files["train"].write(json.dumps({"text": made}) + "\n")
        else:
            files["recalling"].write(json.dumps({"text": made}) + "\n")
            files["plain"].write(json.dumps({"text": text}) + "\n")
    for file in files.values():
        file.close()


if __name__ == "__main__":
    main()

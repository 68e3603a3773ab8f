"""Multiple-choice questions of the standard library, which every machine has: which line comes next."""

import random
from collections.abc import Iterator
from pathlib import Path

from stellarbyte_jax.data.corpus import stdlib_sources, write_records

# Lines before the one that is asked for, choices of a question, and questions of a file.
_BEFORE, _CHOICES, _A_FILE = 8, 4, 2
_SHORTEST, _LONGEST = 12, 80


def write_line_questions(path: str | Path, *, force: bool = False) -> int:
    """Writes {"context", "choices", "answer"} lines; returns their number.

    Raises:
        UserError: this machine has the library without its sources, or write_records refuses the file.
    """
    return write_records(path, line_questions(), force=force)


def line_questions() -> Iterator[dict[str, object]]:
    """Questions of each file: some lines, and four lines of the file of which one is the next; always the same ones.

    The wrong choices are indented as the right one is, so that indentation does not give it away.
    """
    for name, text in stdlib_sources():
        lines, draw = text.splitlines(), random.Random(name)
        places: dict[int, list[int]] = {}
        for place, line in enumerate(lines):
            if _SHORTEST <= len(line) <= _LONGEST and line.isascii() and not line.lstrip().startswith("#"):
                places.setdefault(len(line) - len(line.lstrip()), []).append(place)
        suited = [(place, alike) for alike in places.values() for place in alike if place >= _BEFORE]
        for place, alike in draw.sample(suited, min(_A_FILE, len(suited))):
            others = sorted({lines[other] for other in alike} - set(lines[place - _BEFORE : place + 1]))
            if len(others) >= _CHOICES - 1:
                choices = [*draw.sample(others, _CHOICES - 1), lines[place]]
                draw.shuffle(choices)
                context = "\n".join(lines[place - _BEFORE : place]) + "\n"
                yield {
                    **{"path": name, "context": context, "choices": choices},
                    **{"answer": choices.index(lines[place]), "target_delimiter": ""},
                }

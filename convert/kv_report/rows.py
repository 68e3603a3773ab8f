"""Cuts passages out of a text, and plants a line of each passage at the end of its prompt."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.tokenizer_file import works
from stellarbyte_jax.config import SourceConfig
from stellarbyte_jax.data.corpus import documents

# Of a planted line, so many tokens stand at the prompt's end, and so many are then to be continued.
CUE, ANSWER = 8, 8

# A passage has at most so many characters for each token that is wanted of it, and no more than so many times what
# the tokens of the first one have: a text makes more passages then.
_CHARACTERS, _MARGIN = 6, 1.25
# More passages than this many times what is wanted are not looked at.
_PLENTY = 40
# The part of the prompt in which a line to plant begins: early, but behind what every cache keeps.
_EARLIEST, _LATEST = 1 / 16, 0.4


@dataclass(frozen=True)
class Rows:
    """Passages, and prompts that end in the beginning of a line that they hold.

    ids_NT: token ids of passages. planted_MP: prompts with a planted line; none of a passage that holds no such line.
    answers_MA: how the planted lines go on.
    """

    ids_NT: np.ndarray
    planted_MP: np.ndarray
    answers_MA: np.ndarray


def rows_of(
    data: str,
    encode: Callable[[str], list[int]],
    bos: int | None,
    sizes: tuple[int, int, int],
    say: Callable[[str], None],
    lines: int = 1,
) -> Rows:
    """Passages spread over a text that `prepare` reads.

    Args:
        data: file, folder or glob.
        encode: makes token ids of a text.
        bos: the token before each passage.
        sizes: the number of passages, their tokens, and those of them that are the prompt.
        say: called with remarks on files.
        lines: the most lines of a passage that are planted, each in a prompt of its own.

    Raises:
        UserError: there is no text, or too little for one passage.
    """
    count, length, prompt = sizes
    with works("of the model"):
        passages = _passages(data, length, encode, count * _PLENTY, say)
        chosen: list[tuple[str, list[int]]] = []
        for number in np.linspace(0, len(passages) - 1, min(count, len(passages))).astype(int):
            ids = encode(passages[number])
            ids = ids if bos is None else [bos, *ids]
            if len(ids) >= length:
                chosen.append((passages[number], ids[:length]))
        if not chosen:
            raise UserError(f"--data {data} has no passage of {length} tokens: name more text, or lower --row-tokens")
        planted = [found for text, ids in chosen for found in islice(_planted(text, ids[:prompt], encode), lines)]
    if len(chosen) < count:
        say(f"--data {data} makes {len(chosen)} passages of {length} tokens, fewer than --rows {count}")
    empty = np.empty((0, prompt), np.int64), np.empty((0, ANSWER), np.int64)
    prompts, answers = map(np.array, zip(*planted, strict=True)) if planted else empty
    return Rows(np.array([ids for _, ids in chosen]), prompts, answers)


def _passages(
    data: str, tokens: int, encode: Callable[[str], list[int]], most: int, say: Callable[[str], None]
) -> list[str]:
    """The text in passages of about so many tokens; a last one that is shorter counts if there is no other."""
    passages: list[str] = []
    rest, characters = "", tokens * _CHARACTERS
    for document in documents([SourceConfig(data)], report=say):
        rest += document.text + "\n"
        while len(rest) >= characters:
            if not passages:
                per_token = characters / max(1, len(encode(rest[:characters])))
                characters = min(characters, math.ceil(tokens * per_token * _MARGIN))
            passages.append(rest[:characters])
            rest = rest[characters:]
        if len(passages) >= most:
            break
    return passages or [rest]


def _planted(text: str, prompt: list[int], encode: Callable[[str], list[int]]) -> Iterator[tuple[list[int], list[int]]]:
    """(the prompt with the first tokens of one of its lines at its end, those that follow in the line), for each line.

    The line begins early in the prompt, and its first tokens occur nowhere else in it.
    """
    body, earliest, latest = prompt[:-CUE], _EARLIEST * len(prompt), _LATEST * len(prompt)
    starts: dict[tuple[int, ...], list[int]] = {}
    for start in range(len(body) - CUE + 1):
        starts.setdefault(tuple(body[start : start + CUE]), []).append(start)
    for line in text.splitlines():
        ids = encode(line.strip())[1:]  # the first token may have merged with what stands before it
        cue, answer = ids[:CUE], ids[CUE : CUE + ANSWER]
        where = starts.get(tuple(cue), [])
        if len(answer) < ANSWER or len(where) != 1 or not earliest < where[0] < latest:
            continue
        if body[where[0] + CUE :][:ANSWER] == answer:
            yield [*body, *cue], answer

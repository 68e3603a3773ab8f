"""Converts layer numbers between the ways that people write them, "0-3,8" or [0, 1, 2, 3, 8], and lists."""

import re
from collections.abc import Iterable

from stellarbyte.errors import UserError, in_full

MOST_LAYERS = 100_000


def layer_numbers(layers: str | int | Iterable[int], field: str) -> list[int]:
    """The ascending layer numbers in "0-3,8" (both ends included) or a list. Raises UserError for anything else."""
    numbers: set[int] = set()
    given = layers if not isinstance(layers, range) else list(layers)
    parts = layers.split(",") if isinstance(layers, str) else [layers] if isinstance(layers, int) else layers
    for part in map(str, parts):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        if match is None or isinstance(layers, bool):
            raise UserError(f'{field} is {in_full(given)}: write layer numbers as "0-3,8" or [0, 1, 2, 3, 8]')
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UserError(f"{field} is {in_full(given)}: {first}-{last} runs backwards")
        if last >= MOST_LAYERS:
            raise UserError(f"{field} is {in_full(given)}: no model has {last} layers")
        numbers.update(range(first, last + 1))
    if not numbers:
        raise UserError(f"{field} is {in_full(given)}: name one layer at least, or leave it out")
    return sorted(numbers)


def layer_ranges(numbers: Iterable[int]) -> str:
    """Ascending layer numbers in the form "0-3,8", the inverse of `layer_numbers`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    return ",".join(f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)

"""Checks the ranks, alphas and dropouts of adapters, for every config that holds them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from stellarbyte import float32
from stellarbyte.errors import UserError, in_full

MAX_RANK = 65_536  # wider than any layer there is


def check_numbers(fields: Mapping[str, Any]) -> None:
    """Raises UserError if no adapter can have the r, lora_alpha, lora_dropout, rank_pattern or alpha_pattern."""
    for field, pattern, (fits, expected) in (("r", "rank_pattern", _RANK), ("lora_alpha", "alpha_pattern", _ALPHA)):
        values = fields.get(pattern)
        if values is not None and not isinstance(values, dict):
            raise UserError(f"{pattern} is {in_full(values)}: map names to numbers, such as {{q_proj: 4}}")
        given = {field: fields[field]} if field in fields else {}
        for name, value in {**given, **{f"{pattern}[{key!r}]": item for key, item in (values or {}).items()}}.items():
            if not fits(value):
                raise UserError(f"{name} is {in_full(value)}: {expected}")
    dropout = fields.get("lora_dropout", 0.0)
    if not is_number(dropout) or not 0 <= dropout < 1:
        raise UserError(f"lora_dropout is {in_full(dropout)}: choose a probability from 0 up to, not including, 1")


def is_whole(value: Any, least: int, most: float = math.inf) -> bool:
    """Whether a value is an integer within bounds; true and false are not."""
    return type(value) is int and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether a value is a number that float32 holds; true and false are not."""
    return type(value) in (int, float) and float32.holds(value)


_Check = tuple[Callable[[Any], bool], str]
_RANK: _Check = (
    lambda value: is_whole(value, 1, MAX_RANK),
    f"a rank is a whole number, 1 or more, and {MAX_RANK} at most",
)
_ALPHA: _Check = (
    lambda value: is_number(value) and value != 0,
    "an alpha is a number other than 0, such as r or twice r",
)

"""Measures how fast a model is before and after."""

import time
from collections.abc import Callable

# Tokens of the prompt that times are measured on, and tokens that follow.
PROMPT, NEW = 64, 32
# Rounds of each measurement: as many as fit into so many seconds, within these bounds, since other work disturbs single
# ones.
_SECONDS, _LEAST, _MOST = 0.3, 4, 50


def times(generate: Callable[[int], int], room: int) -> tuple[float, float]:
    """Seconds for a prompt, and for a token after it: the fastest of several rounds, after one that warms up.

    generate: continues the prompt by at most so many tokens, and returns how many came: a text may end early. room: the
        tokens that the context leaves.
    """
    many = min(NEW, room)
    count = generate(many)
    generate(1)
    began, rounds = time.perf_counter(), 0
    first = whole = float("inf")
    while rounds < _LEAST or (rounds < _MOST and time.perf_counter() - began < _SECONDS):
        first = min(first, _seconds(generate, 1))
        whole = min(whole, _seconds(generate, many))
        rounds += 1
    return first, max(whole - first, 0.0) / max(count - 1, 1)


def _seconds(generate: Callable[[int], int], new: int) -> float:
    start = time.perf_counter()
    generate(new)
    return time.perf_counter() - start

"""Measures how fast a model is before and after."""

import time
from collections.abc import Callable

# Tokens of the prompt that times are measured on, and tokens that follow.
PROMPT, NEW = 64, 32


def times(generate: Callable[[int], int], room: int) -> tuple[float, float]:
    """Seconds for a prompt, and for a token after it: the fastest of three, after one that warms up.

    generate: continues the prompt by at most so many tokens, and returns how many came: a text may end early. room: the
        tokens that the context leaves.
    """

    def seconds(new: int) -> tuple[float, int]:
        def once() -> tuple[float, int]:
            start = time.perf_counter()
            count = generate(new)
            return time.perf_counter() - start, count

        return min(once() for _ in range(4))

    (first, _), (whole, count) = seconds(1), seconds(min(NEW, room))
    return first, max(whole - first, 0.0) / max(count - 1, 1)

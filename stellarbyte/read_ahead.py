"""Reads tensors in threads, ahead of whoever takes them in their order, within a bound of memory."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Name = TypeVar("Name")
Values = TypeVar("Values")

# The most of what has been read and not been taken yet; a tensor that is larger is read alone.
_MOST_BYTES = 96 << 20
_MOST_THREADS = 8


def read_ahead(
    tensors: Iterable[tuple[Name, int, Callable[[], Values]]], most_bytes: int = _MOST_BYTES, most_done: int = 0
) -> Generator[tuple[Name, Values], None, None]:
    """(name, values) of each (name, bytes, function that reads the values), in their order.

    An error of a reading is raised where its values would be taken.

    Args:
        tensors: what is to be read.
        most_bytes: the most of what is being read, and of what has been read and is not done with.
        most_done: more than 0 if what has been read takes no memory, as it has gone to a file. Then only what is being
            read counts for `most_bytes`, and this is the most of both.
    """
    coming = iter(tensors)
    waiting: deque[tuple[Name, int, Future[Values]]] = deque()
    ahead = 0
    following = next(coming, None)

    def has_room(size: int) -> bool:
        if not most_done:
            return not waiting or ahead + size <= most_bytes
        reading = sum(each for _, each, future in waiting if not future.done())
        return not reading or (reading + size <= most_bytes and ahead + size <= most_done)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "read ahead") as pool:

        def begin() -> None:
            nonlocal following, ahead
            while following is not None and has_room(following[1]):
                name, size, read = following
                waiting.append((name, size, pool.submit(read)))
                ahead += size
                following = next(coming, None)

        try:
            begin()
            while waiting:
                name, size, reading = waiting.popleft()
                values = reading.result()
                del reading  # it holds the values
                if most_done:  # a large one is not alone any more
                    begin()
                yield name, values
                del values
                ahead -= size
                begin()
        finally:
            pool.shutdown(cancel_futures=True)

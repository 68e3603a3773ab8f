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
    tensors: Iterable[tuple[Name, int, Callable[[], Values]]], most_bytes: int = _MOST_BYTES
) -> Generator[tuple[Name, Values], None, None]:
    """(name, values) of each (name, bytes, function that reads the values), in their order.

    An error of a reading is raised where its values would be taken.
    """
    coming = iter(tensors)
    waiting: deque[tuple[Name, int, Future[Values]]] = deque()
    ahead = 0
    following = next(coming, None)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "read ahead") as pool:
        try:
            while waiting or following is not None:
                while following is not None and (not waiting or ahead + following[1] <= most_bytes):
                    name, size, read = following
                    waiting.append((name, size, pool.submit(read)))
                    ahead += size
                    following = next(coming, None)
                name, size, reading = waiting.popleft()
                values = reading.result()
                del reading  # it holds the values
                yield name, values
                del values
                ahead -= size
        finally:
            pool.shutdown(cancel_futures=True)

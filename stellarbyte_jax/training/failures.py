"""Lets a run outlive a failure until it has saved, after a step that all processes agree on."""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice

from stellarbyte.errors import UserError
from stellarbyte_jax.data.loader import Batch

# A process that asks for the end after step s may have to do two more steps. By then another process has done step
# s + 1 at most, because it looks at that step's figures, to which all contribute, before it does the next. The last
# step is the one after that (see Processes.stop_after). So three batches are kept in memory: if one cannot be read, the
# two before it are there.
_BATCHES_AHEAD = 3


class Failures:
    """The first failure of this process that the run survives until it has saved."""

    def __init__(self) -> None:
        self.first: UserError | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keeps a UserError that is raised inside the block, and lets the program go on after the block."""
        try:
            yield
        except UserError as error:
            self.first = self.first or error


class ReadAhead:
    """An iterator over the next `count` batches that reads three ahead, and notes if one of these cannot be read.

    It closes the `batches` that it is given.
    """

    def __init__(self, batches: Generator[Batch, None, None], count: int, failures: Failures) -> None:
        self._failures = failures
        self._begin(batches, count)

    def restart(self, batches: Generator[Batch, None, None], count: int) -> None:
        """Goes on with `count` other batches."""
        self.close()
        self._begin(batches, count)

    def close(self) -> None:
        """Ends the reading."""
        self._source.close()

    def _begin(self, batches: Generator[Batch, None, None], count: int) -> None:
        self._source, self._batches = batches, islice(batches, count)
        self._in_memory: deque[Batch] = deque()
        self._ended = False
        self._read()

    def __next__(self) -> Batch:
        batch = self._in_memory.popleft()
        self._read()
        return batch

    def _read(self) -> None:
        while len(self._in_memory) < _BATCHES_AHEAD and not self._ended:
            batch = None
            with self._failures.noted():
                batch = next(self._batches, None)
            if batch is None:
                self._ended = True
            else:
                self._in_memory.append(batch)

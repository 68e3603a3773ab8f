"""What fails between two saves does not end a run at once: it saves first, after a step that all processes agree on."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from stellarbyte.errors import UserError
from stellarbyte_jax.data.loader import Batch

# A process that is to stop after step s may have to do two more: another has passed step s + 1 at most, since it looks
# at that step's figures before it passes the next one, and the last step is the one after (see Processes.stop_after).
# So three batches are in memory: where one cannot be read, the two before it are there.
_BATCHES_AHEAD = 3


class Failures:
    """The first failure of this process that the run survives until it has saved."""

    def __init__(self) -> None:
        self.first: UserError | None = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keeps a UserError from within, instead of raising it."""
        try:
            yield
        except UserError as error:
            self.first = self.first or error


class ReadAhead:
    """The next `count` of some batches, by `next`; where one of the three behind cannot be read, that is noted."""

    def __init__(self, batches: Iterator[Batch], count: int, failures: Failures) -> None:
        self._batches, self._failures = islice(batches, count), failures
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

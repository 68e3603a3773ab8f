"""Lets a signal or a failure in one process cut a validation short in all of them."""

from collections.abc import Callable, Iterator

import jax

from stellarbyte_jax.processes.joined import Processes
from stellarbyte_jax.training.failures import Failures


class CutShortError(Exception):
    """A signal or a failure has cut a validation short."""


def until(
    ends: Callable[[], bool], batches: Iterator[dict[str, jax.Array]], processes: Processes, failures: Failures
) -> Iterator[dict[str, jax.Array]]:
    """The batches, until `ends` is true in some process; then CutShortError is raised in all processes."""
    while True:
        batch = None
        with failures.noted():
            batch = next(batches, None)
        if any(processes.share(ends())):
            raise CutShortError
        if batch is None:
            return
        yield batch

"""What a machine reaches at its best, by the operations of the library whose passes are timed."""

import time
from collections.abc import Callable
from typing import NamedTuple

from stellarbyte.processor import processor_name
from stellarbyte.report.measurements import Machine

# The side of square matrices, on an accelerator and on a processor.
_SIDE, _SIDE_OF_PROCESSORS = 8192, 2048
# The most bytes of an array. A small model's weights may lie in caches, so the array has no more bytes than these.
_BYTES = 256 << 20
_ROUNDS = 10


class Operations(NamedTuple):
    """What is timed; each does its work once, and waits for its end.

    matmul: the product of two square matrices. copy, read: of an array.
    """

    matmul: Callable[[], object]
    copy: Callable[[], object]
    read: Callable[[], object]


def sizes(*, is_processor: bool, weight_bytes: int) -> tuple[int, int]:
    """(the side of the matrices, the bytes of the array) that a machine is measured on."""
    return (_SIDE_OF_PROCESSORS if is_processor else _SIDE), min(_BYTES, weight_bytes)


def measure_machine(
    operations: Operations, side: int, nbytes: int, dtype: str, device: str | None, threads: int | None
) -> Machine:
    """The best of a few rounds of each. device: an accelerator's name; None for this machine's processor."""
    matmul = _best(operations.matmul)
    return Machine(
        name=device or processor_name() or "a processor",
        dtype=dtype,
        flops=2 * side**3 / matmul,
        bandwidth=max(2 * nbytes / _best(operations.copy), nbytes / _best(operations.read)),
        threads=threads,
    )


def _best(run: Callable[[], object]) -> float:
    run()  # which may compile it
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)

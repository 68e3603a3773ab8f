"""Times a model over batch and length, within bounded time, and holds each time against the machine's roofline."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from stellarbyte.progress import Update
from stellarbyte.report.architecture import Architecture
from stellarbyte.report.measurements import Latency, LatencyPoint, Machine
from stellarbyte.report.pass_work import pass_work

BATCHES, LENGTHS = (1, 4, 16), (128, 512, 2048)

# Passes that warm up, and those that are timed: as many as fit into so many seconds, within bounds. A decoding cache
# grows by a token in each of them.
WARM_UP, LEAST, MOST = 2, 5, 20
_SECONDS = 2.0
ROOM = WARM_UP + MOST

# Of what a pass reads, so many times must be free: activations and a second cache come on top.
_COPIES = 2

# All points together.
BUDGET_SECONDS = 90.0


class Pass(NamedTuple):
    """A pass that is ready to be timed: `run` does it once and waits for its end, and `close` frees its memory."""

    run: Callable[[], None]
    compile_seconds: float | None
    close: Callable[[], None]


class Engine(Protocol):
    """A model in a library, on one device."""

    @property
    def library(self) -> str:
        """The library and its version."""
        ...

    def machine(self) -> Machine:
        """The machine's best, measured."""
        ...

    def prefill(self, batch: int, length: int) -> Pass:
        """A pass over prompts, with a new cache each time, which gives the logits of the last token."""
        ...

    def decode(self, batch: int, length: int) -> Pass:
        """A pass over one more token of each row, behind `length` tokens and those of the passes before."""
        ...

    def room(self) -> int | None:
        """Bytes that are free; None where the device itself refuses what it has no memory for."""
        ...

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether an error says that the device has too little memory."""
        ...


class Point(NamedTuple):
    """What to time, with the FLOPs of a pass and the bytes that it reads."""

    phase: str
    batch: int
    length: int
    flops: float
    nbytes: float


def points(
    context: int | None, work: Callable[[str, int, int], tuple[float, float]], batches: Sequence[int] = BATCHES
) -> list[Point]:
    """What to time of a model with this context, those with little work first; `work` gives FLOPs and bytes."""
    longest = LENGTHS[-1] if context is None else context
    prompts = sorted({min(length, longest) for length in LENGTHS})
    caches = sorted({min(length, longest - ROOM) for length in LENGTHS if longest > ROOM})
    found = [
        Point(phase, batch, length, *work(phase, batch, length))
        for phase, lengths in (("prefill", prompts), ("decode", caches))
        for batch in batches
        for length in lengths
    ]
    return sorted(found, key=lambda point: (point.flops, point.nbytes))


def latency_of(
    engine: Engine, architecture: Architecture, weight_bytes: float, cache_bytes: float, update: Update
) -> Latency:
    """The speed of a model over batch and length. weight_bytes, cache_bytes: of a number that is stored."""

    def work(phase: str, batch: int, length: int) -> tuple[float, float]:
        return pass_work(architecture, phase, batch, length, weight_bytes, cache_bytes)

    return measure_latency(engine, points(architecture.context, work), update)


def measure_latency(
    engine: Engine,
    wanted: Sequence[Point],
    update: Update = lambda _done, _whole: None,
    *,
    budget: float = BUDGET_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """The speed at each point; the rest is left out, and said so, once the budget of seconds would not be enough."""
    began, machine = clock(), engine.machine()
    found: list[LatencyPoint] = []
    remark, slowest = None, 1.0
    for number, point in enumerate(wanted):
        update(number, len(wanted))
        shortest = _shortest(machine, point)
        if found and clock() - began + slowest * shortest * (WARM_UP + LEAST) > budget:
            remark = f"left out to stay within {budget:.0f} s: {_left(wanted[number:])}"
            break
        try:
            _check_memory(engine, point)
            measured = _measured(engine, machine, point, clock)
        except Exception as error:
            if not engine.is_out_of_memory(error):
                raise
            remark = f"left out for want of memory: {_left(wanted[number:])}"
            break
        found.append(measured)
        slowest = measured.median / max(shortest, 1e-12)
    update(len(wanted), len(wanted))
    order = {"prefill": 0, "decode": 1}
    found.sort(key=lambda point: (order[point.phase], point.batch, point.length))
    return Latency(engine.library, machine, tuple(found), remark)


def _check_memory(engine: Engine, point: Point) -> None:
    """Raises MemoryError where a system would rather end the process."""
    room = engine.room()
    if room is not None and _COPIES * point.nbytes > room:
        raise MemoryError


def _measured(engine: Engine, machine: Machine, point: Point, clock: Callable[[], float]) -> LatencyPoint:
    prepare = engine.prefill if point.phase == "prefill" else engine.decode
    ready = prepare(point.batch, point.length)
    try:
        seconds = list(_seconds(ready.run, clock))
    finally:
        ready.close()
    median = float(np.median(seconds))
    tokens = point.batch * (point.length if point.phase == "prefill" else 1)
    compute, memory = point.flops / machine.flops, point.nbytes / machine.bandwidth
    return LatencyPoint(
        phase=point.phase,
        batch=point.batch,
        length=point.length,
        median=median,
        p95=float(np.percentile(seconds, 95)),
        repeats=len(seconds),
        tokens_per_second=tokens / median,
        flops=point.flops,
        nbytes=point.nbytes,
        bound="compute" if compute >= memory else "memory",
        reached=max(compute, memory) / median,
        compile_seconds=ready.compile_seconds,
    )


def _seconds(run: Callable[[], None], clock: Callable[[], float]) -> Iterator[float]:
    for _ in range(WARM_UP):
        run()
    began, times = clock(), 0
    while times < LEAST or (times < MOST and clock() - began < _SECONDS):
        start = clock()
        run()
        times += 1
        yield max(clock() - start, 1e-9)


def _shortest(machine: Machine, point: Point) -> float:
    """The least seconds that the roofline allows: arithmetic and memory traffic overlap in full."""
    return max(point.flops / machine.flops, point.nbytes / machine.bandwidth)


def _left(rest: Sequence[Point]) -> str:
    names = [f"{point.phase} of batch {point.batch} at {point.length}" for point in rest]
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")

"""Times engines whose passes take as long as they say."""

from collections.abc import Callable

import pytest

from stellarbyte.report.measurements import Machine
from stellarbyte.report.timing import LEAST, MOST, ROOM, WARM_UP, Pass, measure_latency, points

MACHINE = Machine("a machine", "float32", flops=1e9, bandwidth=1e8, threads=2)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Engine:
    """Takes so many seconds a pass by a function of phase, batch, length and the number of passes before."""

    library = "none 1.0"

    def __init__(self, seconds: Callable[[str, int, int, int], float]) -> None:
        self.clock, self.seconds = Clock(), seconds
        self.free: int | None = None
        self.open: list[tuple[str, int, int]] = []
        self.runs: dict[tuple[str, int, int], int] = {}

    def machine(self) -> Machine:
        return MACHINE

    def prefill(self, batch: int, length: int) -> Pass:
        return self._pass("prefill", batch, length)

    def decode(self, batch: int, length: int) -> Pass:
        return self._pass("decode", batch, length)

    def room(self) -> int | None:
        return self.free

    def is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, MemoryError)

    def _pass(self, phase: str, batch: int, length: int) -> Pass:
        point = phase, batch, length
        self.open.append(point)

        def run() -> None:
            assert self.open == [point]  # the cache before it is gone
            before = self.runs.get(point, 0)
            self.runs[point] = before + 1
            self.clock.now += self.seconds(phase, batch, length, before)

        return Pass(run, 1.5, self.open.clear)


def work(phase: str, batch: int, length: int) -> tuple[float, float]:
    return (batch * length * 1e4, 1e6) if phase == "prefill" else (batch * 1e4, 1e6 + batch * length * 10)


def test_median_p95_and_rates() -> None:
    """Of twenty passes that take 1 to 20 ms, once the first, slow ones have warmed up."""
    engine = Engine(lambda _p, _b, _l, before: 9.0 if before < WARM_UP else (before - WARM_UP + 1) * 1e-3)
    wanted = [point for point in points(4096, work, [4]) if point.length == 512]
    found = measure_latency(engine, wanted, clock=engine.clock, budget=1e9)
    prefill, decode = found.points
    assert (prefill.phase, prefill.batch, prefill.length, prefill.repeats) == ("prefill", 4, 512, MOST)
    assert prefill.median == pytest.approx(10.5e-3)
    assert prefill.p95 == pytest.approx(19.05e-3)
    assert prefill.tokens_per_second == pytest.approx(4 * 512 / 10.5e-3)
    assert decode.tokens_per_second == pytest.approx(4 / 10.5e-3)
    assert prefill.compile_seconds == 1.5
    assert (found.library, found.machine, found.remark) == ("none 1.0", MACHINE, None)
    assert engine.runs[("decode", 4, 512)] == WARM_UP + MOST


def test_the_roofline() -> None:
    engine = Engine(lambda *_: 0.1)
    (long,) = [point for point in points(4096, work, [16]) if (point.phase, point.length) == ("prefill", 2048)]
    (short,) = [point for point in points(4096, work, [1]) if (point.phase, point.length) == ("decode", 128)]
    by_compute, by_memory = measure_latency(engine, [short, long], clock=engine.clock).points
    assert (by_compute.bound, by_memory.bound) == ("compute", "memory")
    assert by_compute.reached == pytest.approx(16 * 2048 * 1e4 / 1e9 / 0.1)
    assert by_memory.reached == pytest.approx((1e6 + 1280) / 1e8 / 0.1)


def test_slow_passes_are_timed_less_often() -> None:
    engine = Engine(lambda *_: 1.0)
    found = measure_latency(engine, points(128, work, [1])[:1], clock=engine.clock)
    assert found.points[0].repeats == LEAST


def test_what_does_not_fit_into_the_time_is_left_out_and_said() -> None:
    engine = Engine(lambda phase, batch, length, _: batch * length * 1e-3 if phase == "prefill" else 0.01)
    found = measure_latency(engine, points(4096, work), clock=engine.clock, budget=60)
    assert engine.clock.now < 90
    assert {(point.batch, point.length) for point in found.points if point.phase == "decode"} == {
        (batch, length) for batch in (1, 4, 16) for length in (128, 512, 2048)
    }
    assert found.remark is not None and "prefill of batch" in found.remark and "60 s" in found.remark


def test_what_does_not_fit_into_memory() -> None:
    def seconds(_phase: str, batch: int, _length: int, _before: int) -> float:
        if batch == 16:
            raise MemoryError
        return 1e-3

    engine = Engine(seconds)
    found = measure_latency(engine, points(4096, work), clock=engine.clock)
    assert found.remark is not None and "memory" in found.remark
    assert found.points and not engine.open
    careful = Engine(lambda *_: 1e-3)
    careful.free = 2_100_000  # twice what little caches need
    found = measure_latency(careful, points(4096, work), clock=careful.clock)
    assert found.remark is not None and "memory" in found.remark
    assert max(point.nbytes for point in found.points) <= 1.05e6
    broken = Engine(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure_latency(broken, points(4096, work), clock=broken.clock)


def test_points_stay_within_the_context() -> None:
    for context in (8, ROOM + 1, 100, 512, 4096, None):
        found = points(context, work)
        for point in found:
            most = point.length if point.phase == "prefill" else point.length + ROOM
            assert 1 <= most <= (context or 2048), (context, point)
        assert len(found) == len({point[:3] for point in found})
    assert {point.length for point in points(512, work) if point.phase == "prefill"} == {128, 512}

"""Measures how much of a call's time went into compiling, so that a rate can leave it out."""

import threading
import time
from types import TracebackType
from typing import Any, Self

import jax

# Tracing, lowering, and the backend's compiling or reading from the cache.
_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class CompileTime:
    """While entered, adds up in `seconds` the time that this thread spends on compiling; nested times count once."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._spans: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """The length of all spans together; time that several spans share counts once."""
        total, end = 0.0, float("-inf")
        for start, stop in sorted(self._spans):
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
        if event in _EVENTS and threading.get_ident() == self._thread:
            now = time.perf_counter()
            self._spans.append((now - duration_secs, now))

"""Reports how long a step took to compile, where its program came from, and why it was compiled again."""

import inspect
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import jax

from stellarbyte_jax.training.watching.hlo_dump import dump_hlo

# Events that JAX reports while it compiles. Durations carry the function's name, events of the cache do not.
_TRACED = "/jax/core/compile/jaxpr_trace_duration"
_LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
_COMPILED = "/jax/core/compile/backend_compile_duration"
_CACHE_ASKED = "/jax/compilation_cache/compile_requests_use_cache"
_CACHE_HIT = "/jax/compilation_cache/cache_hits"

# The largest number of differing arguments that a report names.
_NAMED = 3


@dataclass(frozen=True)
class Compilation:
    """One compilation of a step.

    compile_seconds: the time that the backend took to compile, or to read the program from the compile cache.
    folder: the compile cache's folder; None if there is none.
    again: how the call differs from the first one; None for the first compilation.
    """

    step: str
    trace_seconds: float
    lower_seconds: float
    compile_seconds: float
    cache: Literal["hit", "miss", "off"]
    folder: str | None = None
    again: str | None = None

    @property
    def seconds(self) -> float:
        """The time of all three."""
        return self.trace_seconds + self.lower_seconds + self.compile_seconds

    def figures(self) -> dict[str, float | str]:
        """The figures for a record of the metrics."""
        seconds = {"trace": self.trace_seconds, "lower": self.lower_seconds, "compile": self.compile_seconds}
        return {f"{name}_seconds": value for name, value in seconds.items()} | {"compile_cache": self.cache}

    def __str__(self) -> str:
        again = "" if self.again is None else " again"
        done = "read from the compile cache" if self.cache == "hit" else "compiled"
        text = f"{self.step} {done}{again} in {self.compile_seconds:.1f} s"
        text += f" (traced in {self.trace_seconds:.1f} s, lowered in {self.lower_seconds:.1f} s)"
        if self.again is not None:
            return f"warning: {text}: {self.again}"
        return f"{text}, because it was not in the compile cache {self.folder}" if self.cache == "miss" else text


class CompileWatch:
    """While entered, reports each compilation of the steps that it watches.

    A second compilation of a step costs minutes on a large model. It means that a batch or the state has another shape,
    dtype or sharding than before, so the report names what changed. doing: makes a context that shows what is going on.
    """

    def __init__(
        self,
        report: Callable[[Compilation], None],
        doing: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._report, self._doing = report, doing
        self._watched: str | None = None
        self._thread = threading.get_ident()
        self._seconds: dict[str, float] = {}
        self._events: set[str] = set()

    def __enter__(self) -> Self:
        jax.monitoring.register_event_listener(self._on_event)
        jax.monitoring.register_event_duration_secs_listener(self._on_duration)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_listener(self._on_event)
        jax.monitoring.unregister_event_duration_listener(self._on_duration)

    def watch(self, step: Any, dump_to: Path | None = None) -> Any:
        """The jitted `step`, watched under its function's name; the first call writes its program into `dump_to`."""
        name, names = step.__name__, list(inspect.signature(step).parameters)
        first: dict[str, _Argument] = {}

        def watched(*arguments: Any) -> Any:
            nonlocal first
            self._watched, self._seconds, self._events = name, {}, set()
            try:
                if dump_to is not None and not first:
                    dump_hlo(step, arguments, dump_to)
                with nullcontext() if first else self._doing(f"compiling the {name.replace('_', ' ')}"):
                    result = step(*arguments)
            finally:
                self._watched = None
            if _COMPILED in self._seconds:
                now = _describe(dict(zip(names, arguments, strict=False)))
                self._report(self._compilation(name.replace("_", " "), _difference(first, now) if first else None))
                first = first or now
            return result

        return watched

    def _compilation(self, step: str, again: str | None) -> Compilation:
        folder = jax.config.values["jax_compilation_cache_dir"] or None
        cache: Literal["hit", "miss", "off"] = "hit" if _CACHE_HIT in self._events else "miss"
        if _CACHE_ASKED not in self._events or folder is None:  # JAX reports this event even if no folder is set
            cache = "off"
        traced, lowered, compiled = (self._seconds.get(event, 0.0) for event in (_TRACED, _LOWERED, _COMPILED))
        return Compilation(step, traced, lowered, compiled, cache, folder, again)

    def _on_event(self, event: str, **_: str | int) -> None:
        if self._watched is not None and threading.get_ident() == self._thread:
            self._events.add(event)

    def _on_duration(self, event: str, duration_secs: float, **details: str | int) -> None:
        # Functions inside the step are traced under their own names; the step's time already contains theirs.
        named = details.get("fun_name") in (self._watched, f"jit({self._watched})")
        if self._watched is not None and named and threading.get_ident() == self._thread:
            self._seconds[event] = self._seconds.get(event, 0.0) + duration_secs


class _Argument(NamedTuple):
    type: str
    sharding: Any


def _describe(arguments: Mapping[str, Any]) -> dict[str, _Argument]:
    """Path -> type and sharding of each array; an array that was donated to the step still knows these."""
    described = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(dict(arguments))[0]:
        name = f"{path[0].key}{jax.tree_util.keystr(path[1:])}"
        abstract = jax.typeof(leaf)
        weak = " (weakly typed)" if abstract.weak_type else ""
        described[name] = _Argument(f"{abstract.str_short()}{weak}", getattr(leaf, "sharding", None))
    return described


def _difference(before: Mapping[str, _Argument], now: Mapping[str, _Argument]) -> str:
    changes = [f"{name} is new" for name in now if name not in before]
    changes += [f"{name} is gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        old, new = before[name], now[name]
        if old.type != new.type:
            changes.append(f"{name} was {old.type} and is {new.type}")
        elif old.sharding != new.sharding:
            changes.append(f"{name} lay as {old.sharding} and lies as {new.sharding}")
    if not changes:
        return "its arguments are what they were, so a setting of JAX or of XLA was changed"
    more = "" if len(changes) <= _NAMED else f", and {len(changes) - _NAMED} more"
    return ", ".join(sorted(changes)[:_NAMED]) + more

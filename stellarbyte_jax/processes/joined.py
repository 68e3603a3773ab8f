"""The processes that train one run: how they find each other, agree, and end together."""

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, NoReturn, Self

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json
from stellarbyte.interrupt import Interrupted, leave_by
from stellarbyte_jax.distributed_config import DistributedConfig
from stellarbyte_jax.processes.cluster import Place, find_place
from stellarbyte_jax.processes.hub import Hub
from stellarbyte_jax.processes.spoke import Spoke

# The exit code when another process has died: EX_TEMPFAIL, "try again" (sysexits.h).
PROCESS_LOST = 75

_GO_ON = "start the same command again, on as many processes as there are: the run goes on from its newest checkpoint"
_SHOWN_FIELDS = 8


class Processes:
    """The processes of a run as one of them sees them, which is alone; a context that they enter and leave together."""

    index, count = 0, 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def share(self, value: Any) -> list[Any]:
        """What each process has to say here, in their order; JSON values. All must call it, equally often."""
        return [value]

    def stop_after(self, step: int, requested: bool) -> bool:  # noqa: ARG002 - alone there is nothing to agree on
        """Whether this step is the last: `requested` by any process, and the same step for all. To call after each."""
        return requested

    def await_end(self) -> NoReturn:
        """Waits for another process, which is about to say why it ends, and ends with it."""
        while True:
            threading.Event().wait()

    def compare(self, fields: Mapping[str, Any]) -> None:
        """Makes sure that all processes have the same in each of these fields: JSON values, also nested.

        Raises:
            UserError: in all processes alike, naming the one that differs, the fields and both values.
        """
        digest = sha256_of_json(fields)
        if len(set(self.share(digest))) == 1:
            return
        first, *others = map(_flat, self.share(fields))
        for index, other in enumerate(others, start=1):
            names = [name for name in first | other if first.get(name) != other.get(name)]
            if names:
                pairs = [f"{name} ({other.get(name)} there, {first.get(name)} in process 0)" for name in names]
                more = f" and {len(pairs) - _SHOWN_FIELDS} more" if len(pairs) > _SHOWN_FIELDS else ""
                raise UserError(
                    f"process {index} is about to train something else than process 0: "
                    f"{', '.join(pairs[:_SHOWN_FIELDS])}{more}; start all with the same config, data and versions"
                )


ALONE = Processes()


@dataclasses.dataclass(frozen=True)
class End:
    """Why a run is over for all its processes: what the one that ended first had to say."""

    process: int
    code: int
    sentence: str


class JoinedProcesses(Processes):
    """One of several. However one of them ends, the others end with a sentence, whatever they are waiting for.

    report: prints an error as the command line does, and returns the exit code for it.
    """

    def __init__(self, place: Place, config: DistributedConfig, report: Callable[[BaseException], int]) -> None:
        self.index, self.count = place.index, place.count
        self._place, self._config, self._report = place, config, report
        self._changed = threading.Condition()
        self._ending = False
        self._round, self._shared = 0, dict[int, list[Any]]()
        # Of the agreement on the last step: what this process knows …
        self._asked = self._held = False
        self._passed, self._stop_at = 0, None
        # … and what process 0 gathers.
        self._said = dict[int, dict[int, Any]]()
        self._all_passed = dict[int, int]()
        self._stopping = False
        self._line: Hub | Spoke
        if self.index == 0:
            self._line = Hub(self.count, self._receive, self._hear, self._lost, config.lost_after)
        else:
            self._line = Spoke(self.index, self.count, self._hear, self._lost, config.lost_after)

    def open(self) -> None:
        """Finds the others, then starts JAX's own distributed runtime beside.

        Raises:
            UserError: process 0 cannot be reached, or not all come in time.
        """
        timeout, place = self._config.start_timeout, self._place
        if isinstance(self._line, Hub):
            service = self._line.open(place.port, timeout)
        else:
            service = self._line.open(place.host, place.port, timeout)
        leave_by(lambda number: self._leave(Interrupted(number)))  # not without a word to the others
        import jax

        # Its handler would take SIGTERM, on which interrupt.py has its own ideas.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            service,
            self.count,
            self.index,
            local_device_ids=place.local_device_ids,
            cluster_detection_method="deactivate",
            coordinator_bind_address=service,
            initialization_timeout=timeout,
            # We hear of a death before JAX does, and say more.
            heartbeat_timeout_seconds=10 * self._config.lost_after,
        )
        if jax.default_backend() == "cpu":
            _silence_gloo()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._leave(error)
        import jax

        self.share("finished")
        jax.distributed.shutdown()
        self.share("shut down")
        self._line.close()

    def share(self, value: Any) -> list[Any]:
        """See Processes."""
        this_round, self._round = self._round, self._round + 1
        self._line.send("share", [this_round, value])
        with self._changed:
            self._changed.wait_for(lambda: this_round in self._shared)
            return self._shared.pop(this_round)

    def stop_after(self, step: int, requested: bool) -> bool:
        """See Processes. Nobody waits for anybody, unless one is to stop: then each says which step it has passed."""
        if requested and not self._asked:
            self._asked = True
            self._line.send("stop", None)
        with self._changed:
            self._changed.wait_for(lambda: self._stop_at is not None or not (self._asked or self._held))
            self._passed = step
            return self._stop_at is not None and step >= self._stop_at

    def _receive(self, process: int, kind: str, value: Any) -> None:
        """Process 0 gets a message. In the line's thread."""
        assert isinstance(self._line, Hub)
        if kind == "share":
            this_round, item = value
            said = self._said.setdefault(this_round, {})
            said[process] = item
            if len(said) == self.count:
                self._line.tell("shared", [this_round, [said[index] for index in range(self.count)]])
                del self._said[this_round]
        elif kind == "stop" and not self._stopping:
            self._stopping = True
            self._line.tell("hold", process)
        elif kind == "passed":
            self._all_passed[process] = value
            if len(self._all_passed) == self.count:
                self._line.tell("stop_at", max(self._all_passed.values()) + 1)
        elif kind == "end":
            self._end_all(End(**value))

    def _hear(self, kind: str, value: Any) -> None:
        """Each process gets a message from process 0. In the line's thread."""
        if kind == "shared":
            with self._changed:
                self._shared[value[0]] = value[1]
                self._changed.notify_all()
        elif kind == "hold":
            with self._changed:
                self._held = True  # from here on the main thread passes no step until the last one is known
                passed = self._passed
            self._line.send("passed", passed)
            if self.index == 0 and value != 0:
                sentence = f"process {value} is to stop: all finish the same step, then save"
                with suppress(OSError, ValueError):  # nobody is there to read it
                    print(f"stellarbyte: {sentence}", file=sys.stderr, flush=True)
        elif kind == "stop_at":
            with self._changed:
                self._stop_at = value
                self._changed.notify_all()
        elif kind == "end":
            self._end(End(**value))

    def _lost(self, process: int) -> None:
        """Another process has gone without a word. In the line's thread."""
        sentence = f"process {process} of {self.count} has died or cannot be reached any more; {_GO_ON}"
        end = End(process, PROCESS_LOST, sentence)
        (self._end_all if isinstance(self._line, Hub) else self._end)(end)

    def _end_all(self, end: End) -> None:
        assert isinstance(self._line, Hub)
        if self._claim():
            self._say(end)
            self._line.part("end", dataclasses.asdict(end), lambda: _exit(end.code))

    def _end(self, end: End) -> None:
        if self._claim():
            self._say(end)
            _exit(end.code)

    def _claim(self) -> bool:
        """True for the first who ends this process: whoever comes second has nothing to add."""
        with self._changed:
            first, self._ending = not self._ending, True
        return first

    def _say(self, end: End) -> None:
        self._report(UserError(end.sentence))

    def _leave(self, error: BaseException) -> NoReturn:
        """Says why this process ends, here and to the others, and ends it."""
        if isinstance(error, Exception) and not isinstance(error, UserError):
            # When a process dies, what the others do with it fails, with errors that nobody needs to read. If it was
            # that, the line will know by then, and end this process.
            time.sleep(self._config.lost_after * 1.5)
        if not self._claim():
            threading.Event().wait()
        code = self._report(error)
        if isinstance(error, UserError):
            sentence = f"process {self.index} has ended: {error}"
        elif isinstance(error, KeyboardInterrupt):
            sentence = f"process {self.index} was interrupted; {_GO_ON}"
        else:
            first_line = (str(error).splitlines() or [""])[0][:200]
            sentence = f"process {self.index} has ended with {type(error).__name__}: {first_line} (see its own output)"
        self._line.close("end", dataclasses.asdict(End(self.index, code, sentence)))
        _exit(code)


@contextmanager
def joined(config: DistributedConfig, report: Callable[[BaseException], int]) -> Iterator[Processes]:
    """The processes that this one is to train with: found, connected and, at the end, left together.

    An error within is reported, told to the others, and ends this process; where it is alone, it is raised as ever.

    Raises:
        UserError: the settings are given by half, or not all processes come.
    """
    place = find_place(config)
    with ALONE if place is None else JoinedProcesses(place, config, report) as processes:
        if isinstance(processes, JoinedProcesses):
            processes.open()
        yield processes


def _flat(fields: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _silence_gloo() -> None:
    """Keeps stdout for what Python prints: Gloo, which carries data between CPUs, has a line for each connection."""
    sys.stdout.flush()
    stdout, ours = sys.stdout, os.dup(1)
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
    buffering = 1 if stdout.line_buffering else -1
    sys.stdout = os.fdopen(ours, "w", buffering, encoding=stdout.encoding, errors=stdout.errors)


def _exit(code: int) -> NoReturn:
    # Not by sys.exit: at Python's end JAX would wait for the others once more, and threads that hang are waited for.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # nobody is there to read it
            stream.write("\x1b[?25h" if stream.isatty() else "")  # a progress display had hidden the cursor
            stream.flush()
    os._exit(code)

"""How the processes that train one run agree and end together: through JAX's coordination service."""

import functools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NoReturn

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of_json
from stellarbyte.interrupt import leave_by
from stellarbyte_jax.distributed_config import DistributedConfig
from stellarbyte_jax.processes.client_abort import call_at_abort, keep_from_native_code
from stellarbyte_jax.processes.cluster import Place, find_place

# The exit code when another process has died: EX_TEMPFAIL, "try again" (sysexits.h).
PROCESS_LOST = 75

_GO_ON = "start the same command again, on as many processes as there are: the run goes on from its newest checkpoint"
_SHOWN_FIELDS = 8
_A_WEEK = 7 * 24 * 3600 * 1000  # in milliseconds; JAX takes no number of more than 31 bits
_SECONDS_TO_BE_HEARD = 3.0
_SECONDS_TO_HEAR = 0.5

# The key under which JAX's preemption sync manager announces a SIGTERM to all processes; its value is a time.
_NOTICE = "RECEIVED_PREEMPTION_NOTICE"


class Processes:
    """The processes of a run, as one of them sees them. In this base class the process is alone."""

    index, count = 0, 1

    def share(self, value: Any) -> list[Any]:
        """The `value` of each process, ordered by process index; values are JSON.

        This is a collective: every process must call it the same number of times.
        """
        return [value]

    def stop_after(self, step: int, requested: bool) -> bool:  # noqa: ARG002 - alone there is nothing to agree on
        """Whether this step is the last one, because some process has `requested` an end.

        It is the same step in all processes, each of which must call this after every step.
        """
        return requested

    def await_end(self) -> NoReturn:
        """Waits for another process, which is about to say why it ends, and ends with it."""
        while True:
            threading.Event().wait()

    def compare(self, fields: Mapping[str, Any]) -> None:
        """Checks that these fields have equal values in all processes; values are JSON and may be nested.

        Raises:
            UserError: a field differs. All processes raise it; it names the process, the fields and both values.
        """
        if len(set(self.share(sha256_of_json(fields)))) == 1:
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


class JoinedProcesses(Processes):
    """One of several processes; they use the key-value store, barriers and preemption sync of JAX's service."""

    def __init__(self, index: int, count: int, client: Any, preemption_sync: Any) -> None:
        self.index, self.count = index, count
        self._client, self._preemption_sync = client, preemption_sync
        self._round, self._asked = 0, False

    def share(self, value: Any) -> list[Any]:
        """See Processes."""
        # This process has passed the last round's barrier, so all processes have read the round before that. Its folder
        # may be overwritten: two folders are enough.
        folder, self._round = f"share/{self._round % 2}/", self._round + 1
        self._client.key_value_set(f"{folder}{self.index}", json.dumps(value), allow_overwrite=True)
        self._client.wait_at_barrier("share", _A_WEEK)
        said = {int(key.removeprefix(folder)): text for key, text in self._client.key_value_dir_get(folder)}
        return [json.loads(said[index]) for index in sorted(said)]

    def stop_after(self, step: int, requested: bool) -> bool:
        """See Processes. A process waits for the others only after one of them has asked for the end."""
        if requested and not self._asked:
            self._asked = True
            self._client.key_value_set(f"asked/{self.index}", str(self.index))
            self._client.key_value_set(_NOTICE, datetime.now(UTC).isoformat(), allow_overwrite=True)
            # The sync managers hear of it in threads of their own. Until this process's has, it would go on with steps
            # for which it may have no batches; the others wait for it in the next step.
            time.sleep(_SECONDS_TO_HEAR)
        stop = self._preemption_sync.reached_sync_point(step)
        if stop and self.index == 0 and not self._asked:
            who = " and ".join(index for _, index in self._client.key_value_dir_get("asked/"))
            with suppress(OSError, ValueError):  # nobody is there to read it
                print(f"stellarbyte: process {who} is to stop: all finish the same step, then save", file=sys.stderr)
        return stop


class _Ending:
    """Ends all processes when one ends; each of them prints a sentence, whatever it is waiting for.

    report: a function that prints an error as the command line does, and returns its exit code.
    """

    def __init__(self, place: Place, config: DistributedConfig, report: Callable[[BaseException], int]) -> None:
        self._place, self._config, self._report = place, config, report
        self._begun = threading.Lock()
        self._client: Any = None
        self._catch_abort = call_at_abort(self._aborted)

    def connect(self, client: Any) -> None:
        """Uses this client of JAX's from now on to hear how another process ends, and to tell how this one does."""
        self._client = client
        threading.Thread(target=self._hear, name="end", daemon=True).start()

    def take_signals(self) -> None:
        """Handles signals here, also after JAX's preemption sync has taken SIGTERM, or libtpu several, at its start."""
        self._catch_abort()
        leave_by(self.leave)

    def leave(self, error: BaseException) -> NoReturn:
        """Reports why this process ends, tells the others, and ends it."""
        if self._client is not None and isinstance(error, Exception) and not isinstance(error, UserError):
            # When another process dies, communication with it fails here, with errors that explain nothing. In that
            # case JAX's client notices the death during this wait, and ends this process with a better sentence.
            time.sleep(self._config.lost_after * 1.5)
        self._begin()
        code = self._report(error)
        if isinstance(error, UserError):
            reason = f"has ended: {error}"
        elif isinstance(error, KeyboardInterrupt):
            reason = f"was interrupted; {_GO_ON}"
        else:
            first_line = (str(error).splitlines() or [""])[0][:200]
            reason = f"has ended with {type(error).__name__}: {first_line} (see its own output)"
        if self._client is not None:
            with suppress(Exception):  # another process was first, or the service has gone
                self._client.key_value_set("end", json.dumps([code, f"process {self._place.index} {reason}"]))
        self._exit(code)

    def _hear(self) -> None:
        while True:
            try:
                end = self._client.blocking_key_value_get("end", _A_WEEK)
            except Exception as error:  # noqa: BLE001 - JAX's errors have no types of their own
                if "DEADLINE_EXCEEDED" not in str(error):
                    return  # the run is over, or the client is about to abort
            else:
                self._end(*json.loads(end))

    def _aborted(self, said: str) -> NoReturn:
        place, config = self._place, self._config
        if self._client is None:
            missing = re.search(r"timed out task names:\s+([\d\s]+)", said)
            status = re.search(r"absl::Status: (.*)", said)
            who = (
                ", ".join(sorted(missing[1].split(), key=int)) if missing else f"{place.index} ({status and status[1]})"
            )
            self._end(
                2,
                f"{place.count} processes should have come to {place.address} within {config.start_timeout} s, but "
                f"these have not: {who}; start all with this distributed.coordinator_address and num_processes, each "
                "with a process_id of its own, and let their machines connect to that port",
            )
        dead = re.search(r"stopped sending heartbeats\):\s+([\d, ]+)", said)
        who = dead[1].strip() if dead else "0"  # nobody tells who has died: process 0, which ran the service
        self._end(PROCESS_LOST, f"process {who} of {place.count} has died or cannot be reached any more; {_GO_ON}")

    def _end(self, code: int, sentence: str) -> NoReturn:
        self._begin()
        self._report(UserError(sentence))
        self._exit(code)

    def _begin(self) -> None:
        """Returns in the first thread that ends this process; a second one has nothing to add, and waits here."""
        if not self._begun.acquire(blocking=False):
            threading.Event().wait()
        with suppress(OSError, ValueError):  # nobody is there to read it
            if sys.stdout.isatty():  # a progress display has hidden the cursor, and would write over the sentence
                sys.stdout.write("\x1b[?25h\n")
            sys.stdout.flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _exit(self, code: int) -> NoReturn:
        # After sys.exit, JAX would wait for the other processes, and Python for threads that hang.
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        if self._place.index == 0:  # the service ends with this process, and the others must hear of the end before
            time.sleep(_SECONDS_TO_BE_HEARD)
        os._exit(code)


@contextmanager
def joined(config: DistributedConfig, report: Callable[[BaseException], int]) -> Iterator[Processes]:
    """The processes that train this run, which are connected at the start and leave together at the end.

    An error inside the block is reported, told to the other processes, and ends this process. A process that is alone
    raises the error as usual.

    Raises:
        UserError: find_place refuses the settings.
    """
    place = find_place(config)
    if place is None:
        yield ALONE
        return
    ending = _Ending(place, config, report)
    try:
        processes = _join(place, config, ending)
        yield processes
        processes.share("finished")  # this waits for all; JAX's shutdown waits for five minutes at most
        import jax

        jax.distributed.shutdown()
    except BaseException as error:  # noqa: BLE001 - whatever it is, the others must hear of it
        ending.leave(error)


def _join(place: Place, config: DistributedConfig, ending: _Ending) -> Processes:
    import jax
    from jax._src.distributed import _jax, global_state

    # By default JAX's service waits longer than its clients, which then end without knowing who is missing.
    make_service = functools.partial(
        _jax.get_distributed_runtime_service, cluster_register_timeout=config.start_timeout
    )
    _jax.get_distributed_runtime_service = make_service
    if place.index == 0:  # if the port is taken, JAX's service ends the process without a sentence
        port = int(place.address.rpartition(":")[2])
        try:
            socket.create_server(("", port)).close()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise UserError(
                f"distributed.coordinator_address: port {port} cannot be used ({reason}): choose a free one"
            ) from error
    jax.config.update("jax_enable_preemption_service", True)
    jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        local_device_ids=place.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=config.start_timeout,
        heartbeat_timeout_seconds=config.lost_after,
    )
    ending.connect(global_state.client)
    ending.take_signals()
    processes = JoinedProcesses(place.index, place.count, global_state.client, global_state.preemption_sync_manager)
    processes.compare({"distributed.num_processes": place.count})
    if jax.default_backend() == "cpu":  # Gloo, which carries data between CPUs, prints a line for each connection
        keep_from_native_code("stdout", os.open(os.devnull, os.O_WRONLY))
    ending.take_signals()
    return processes


def _flat(fields: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat

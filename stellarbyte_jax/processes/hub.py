"""Process 0's end of the line, which all the others are connected to."""

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte_jax.processes.wire import (
    BEAT,
    BEATS_UNTIL_LOST,
    BYE,
    JAX,
    LONGEST_MESSAGE,
    SECONDS_TO_HANG_UP,
    Line,
    encoded,
    messages,
    pass_on,
)

_SECONDS_TO_INTRODUCE = 10.0
_SECONDS_BETWEEN_TRIES = 0.05


class Hub(Line):
    """Process 0's end, which all the others are connected to.

    receive: called with (process, kind, value) for each message to process 0, its own included.
    """

    def __init__(
        self,
        count: int,
        receive: Callable[[int, str, Any], None],
        hear: Callable[[str, Any], None],
        lost: Callable[[int], None],
        lost_after: int,
    ) -> None:
        super().__init__(hear, lost, lost_after)
        self._count, self._receive = count, receive
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._beats_missed: dict[int, int] = {}
        self._complete = asyncio.Event()
        self._refusal: str | None = None
        self._parting: asyncio.Task[None] | None = None
        self.jax_address = f"127.0.0.1:{_free_port()}"

    def open(self, port: int, timeout: int) -> str:
        """Waits for all the others; returns the address at which JAX's client in this process finds its service.

        Raises:
            UserError: the port is taken, or not all have come in time.
        """
        try:
            self._run(self._listen(port))
        except OSError as error:
            raise UserError(
                f"distributed.coordinator_address: port {port} cannot be used ({error.strerror}): choose a free one"
            ) from error
        self._run(self._wait_for_all(timeout))
        return self.jax_address

    def send(self, kind: str, value: Any) -> None:
        """A message to process 0, which is this one."""
        self._loop.call_soon_threadsafe(self._receive, 0, kind, value)

    def tell(self, kind: str, value: Any) -> None:
        """A message to all, this process included; for `receive` and `lost` to call."""
        for process in self._writers:
            self._write(process, kind, value)
        self._hear(kind, value)

    def close(self, kind: str = BYE, value: Any = None) -> None:
        """Sends a last message to all the others and waits until they have hung up."""
        self._run(self._hang_up(kind, value))

    def part(self, kind: str, value: Any, then: Callable[[], None]) -> None:
        """As `close`, for `receive` and `lost` to call; `then` is called when the others have hung up."""

        async def hang_up() -> None:
            await self._hang_up(kind, value)
            then()

        self._parting = self._loop.create_task(hang_up())

    async def _listen(self, port: int) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        listener = socket.create_server(("", port), family=family, dualstack_ipv6=dual, backlog=1024)
        await asyncio.start_server(self._accept, sock=listener, limit=LONGEST_MESSAGE)

    async def _wait_for_all(self, timeout: int) -> None:
        if self._count > 1:
            try:
                await asyncio.wait_for(self._complete.wait(), timeout)
            except TimeoutError:
                missing = ", ".join(str(other) for other in range(1, self._count) if other not in self._writers)
                self._refusal = (
                    f"of {self._count} processes, these have not come within {timeout} s: {missing}; start them with "
                    "this distributed.coordinator_address and num_processes, each with a process_id of its own"
                )
        if self._refusal is not None:
            raise UserError(self._refusal)
        self._spawn(self._beat())
        for process in self._writers:
            self._write(process, "welcome", None)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            kind, process, count = json.loads(await asyncio.wait_for(reader.readline(), _SECONDS_TO_INTRODUCE))
        except (ValueError, TypeError, TimeoutError, OSError):  # somebody else, at the wrong door
            writer.close()
            return
        if kind == JAX:
            near_reader, near_writer = await self._reach_service()
            await asyncio.gather(pass_on(reader, near_writer, hang_up=True), pass_on(near_reader, writer, hang_up=True))
            return
        if count != self._count:
            self._refuse(
                f"distributed.num_processes is {count} in process {process} and {self._count} in process 0: "
                "start all with the same"
            )
        elif process in self._writers and not self._complete.is_set():
            self._refuse(f"distributed.process_id {process} was given to two processes: give each one of its own")
        if self._refusal is not None or self._complete.is_set():
            writer.write(encoded("refused", self._refusal or "the run has all its processes already"))
            writer.close()
            return
        self._writers[process], self._beats_missed[process] = writer, 0
        if len(self._writers) == self._count - 1:
            self._complete.set()
        await self._read(process, reader)

    async def _reach_service(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.jax_address.split(":")
        while True:
            try:
                return await asyncio.open_connection(host, int(port))
            except OSError:  # JAX has not started it yet
                await asyncio.sleep(_SECONDS_BETWEEN_TRIES)

    def _refuse(self, refusal: str) -> None:
        if not self._complete.is_set():
            self._refusal = refusal
            self._complete.set()

    async def _read(self, process: int, reader: asyncio.StreamReader) -> None:
        polite = False
        async for kind, value in messages(reader):
            self._beats_missed[process] = 0
            if kind == BYE:
                polite = True
            elif kind != BEAT:
                self._receive(process, kind, value)
        del self._writers[process], self._beats_missed[process]
        # Until all have come, one that goes may come again.
        if self._complete.is_set() and not polite and not self._closing:
            self._lost(process)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds)
            for process in list(self._writers):
                self._write(process, BEAT, None)
                self._beats_missed[process] += 1
                # Beats are counted, not seconds: where the machine slept, this process did, too.
                if self._beats_missed[process] > BEATS_UNTIL_LOST and not self._closing:
                    self._lost(process)

    async def _hang_up(self, kind: str, value: Any) -> None:
        self._close()
        for process in self._writers:
            self._write(process, kind, value)
        deadline = self._loop.time() + SECONDS_TO_HANG_UP
        while self._writers and self._loop.time() < deadline:
            await asyncio.sleep(0.02)

    def _write(self, process: int, kind: str, value: Any) -> None:
        self._writers[process].write(encoded(kind, value))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]

"""The end of the line in every process but 0."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from stellarbyte.errors import UserError
from stellarbyte_jax.processes.wire import (
    BEAT,
    BEATS_UNTIL_LOST,
    BYE,
    JAX,
    LONGEST_MESSAGE,
    OURS,
    SECONDS_TO_HANG_UP,
    Line,
    encoded,
    messages,
    pass_on,
)

_SECONDS_BETWEEN_TRIES = 0.5


class Spoke(Line):
    """Any other process's end."""

    def __init__(
        self,
        index: int,
        count: int,
        hear: Callable[[str, Any], None],
        lost: Callable[[int], None],
        lost_after: int,
    ) -> None:
        super().__init__(hear, lost, lost_after)
        self._introduction = index, count
        self._writer: asyncio.StreamWriter | None = None
        self._beats_missed = 0
        self._address = ("", 0)
        self._mute: list[asyncio.StreamWriter] = []

    def open(self, host: str, port: int, timeout: int) -> str:
        """Connects, and waits until all have come; returns the address at which JAX's client finds its service.

        Raises:
            UserError: process 0 does not answer in time.
        """
        self._address = host, port
        return self._run(self._join(timeout))

    def send(self, kind: str, value: Any) -> None:
        """A message to process 0."""
        self._loop.call_soon_threadsafe(self._write, kind, value)

    def close(self, kind: str = BYE, value: Any = None) -> None:
        """Sends a last message to process 0 and hangs up."""
        self._run(self._hang_up(kind, value), SECONDS_TO_HANG_UP)

    async def _join(self, timeout: int) -> str:
        reader = await self._reach(timeout)
        self._spawn(self._read(reader))
        self._spawn(self._beat())
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _reach(self, timeout: int) -> asyncio.StreamReader:
        deadline, complaint = self._loop.time() + timeout, "nothing answers there"
        while self._loop.time() < deadline:
            try:
                reader, self._writer = await self._connect(OURS)
                # Process 0 gives up first, and says who is missing.
                line = await asyncio.wait_for(reader.readline(), deadline + SECONDS_TO_HANG_UP - self._loop.time())
                if line:
                    kind, value = json.loads(line)
                    if kind == "welcome":
                        return reader
                    if kind == "refused":
                        raise UserError(value)
                    self._hear(kind, value)
            except UserError:
                raise
            except OSError as error:  # not there yet, or its name is not known yet
                complaint = error.strerror or str(error)
            except (ValueError, TypeError, TimeoutError):
                complaint = "what answers there is not process 0 of this run"
            await asyncio.sleep(_SECONDS_BETWEEN_TRIES)
        host, port = self._address
        raise UserError(
            f"distributed.coordinator_address {host}:{port} cannot be reached within {timeout} s ({complaint}): start "
            "process 0 there, and let this machine connect to that port"
        )

    async def _connect(self, kind: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address, limit=LONGEST_MESSAGE)
        writer.write(json.dumps([kind, *self._introduction]).encode() + b"\n")
        return reader, writer

    async def _read(self, reader: asyncio.StreamReader) -> None:
        async for kind, value in messages(reader):
            self._beats_missed = 0
            if kind == BYE:
                self._closing = True
            elif kind != BEAT:
                self._hear(kind, value)
        if not self._closing:
            self._lost(0)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._beat_seconds)
            self._write(BEAT, None)
            self._beats_missed += 1
            if self._beats_missed > BEATS_UNTIL_LOST and not self._closing:
                self._lost(0)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._connect(JAX)
        except OSError:  # process 0 has just gone
            pass
        else:
            await asyncio.gather(pass_on(reader, far_writer, hang_up=True), pass_on(far_reader, writer, hang_up=False))
        self._mute.append(writer)  # which would hang up if it were dropped

    async def _hang_up(self, kind: str, value: Any) -> None:
        self._close()
        if self._writer is None:  # process 0 was never reached
            return
        self._write(kind, value)
        self._writer.close()
        await self._writer.wait_closed()

    def _write(self, kind: str, value: Any) -> None:
        assert self._writer is not None
        self._writer.write(encoded(kind, value))

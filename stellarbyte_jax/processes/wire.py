"""The line between the processes of a run: messages to process 0 and back, and JAX's own connections beside them."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

# JAX's coordination service and its clients talk over this line too. When the service goes away with process 0, a
# client of JAX's own ends its process at once, with a stack trace instead of a sentence. So it is connected to its own
# process, which passes the bytes on and, when the other side is gone, keeps that to itself until we have said why.
JAX, OURS = "jax", "ours"

# The line's own messages: that an end is alive, and that it leaves as agreed.
BEAT, BYE = "beat", "bye"

BEATS_UNTIL_LOST = 6
LONGEST_MESSAGE = 1 << 28
SECONDS_TO_HANG_UP = 5.0


class Line:
    """What both ends share: an event loop in a thread of its own, so that it hears whatever the main thread waits for.

    hear: called with each message that process 0 sends to all.
    lost: called with the number of a process that has gone without a word.
    """

    def __init__(self, hear: Callable[[str, Any], None], lost: Callable[[int], None], lost_after: int) -> None:
        self._hear, self._lost = hear, lost
        self._beat_seconds = lost_after / BEATS_UNTIL_LOST
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._loop.run_forever, name="line", daemon=True).start()

    def _run(self, work: Coroutine[Any, Any, Result], timeout: float | None = None) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def _close(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # a loop keeps weak references only
        task.add_done_callback(self._tasks.discard)


def encoded(kind: str, value: Any) -> bytes:
    """A message as it goes over the line."""
    return json.dumps([kind, value]).encode() + b"\n"


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[tuple[str, Any]]:
    """The messages that come, until the other side hangs up or is gone."""
    try:
        while line := await reader.readline():
            if not line.endswith(b"\n"):
                return
            kind, value = json.loads(line)
            yield kind, value
    except OSError:
        return


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hang_up: bool) -> None:
    """Passes bytes on until there are no more; `hang_up` says whether the end is passed on as well."""
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    if hang_up:
        writer.close()

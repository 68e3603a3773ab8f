"""Ends a text that comes in pieces before its first stop string, even if that spans several pieces."""

from collections.abc import Sequence

from stellarbyte.errors import UserError, shown


def check_stop_strings(stop: Sequence[str]) -> None:
    """Raises UserError if a stop string is empty or holds a byte that is not UTF-8."""
    if "" in stop:
        raise UserError("stop '' would end every answer at once: give at least one character, or leave it out")
    for string in stop:
        if any("\ud800" <= character <= "\udfff" for character in string):
            raise UserError(f"stop {shown(string)} is not UTF-8 text, as every answer is: write it in UTF-8")


class StopCutter:
    """Passes text on up to the first stop string, and holds back an end of it that may begin one.

    If two stop strings end at the same character, the text ends before the longer one.

    Raises:
        UserError: a stop string is empty, or holds what is no character.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        check_stop_strings(stop)
        self.stopped = False
        self._stop, self._held = tuple(stop), ""

    def push(self, text: str) -> str:
        """The text that can be passed on now that `text` has come; it may be empty."""
        assert not self.stopped
        held = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)[1]]
        beginning = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - beginning :]
        return held[: len(held) - beginning]

    def finish(self) -> str:
        """The text that is still held back; to be called when no more text will come."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` that are the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)

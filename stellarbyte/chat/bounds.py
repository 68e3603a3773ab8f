"""Bounds what a chat template does for one conversation: a stranger wrote it, and it could run or grow for ever."""

import re
import time
from typing import Any

from stellarbyte.errors import UserError

MOST_STEPS = 1_000_000
"""The most turns of loops, calls, filters and operators, beyond 10,000 a message; honest templates take about ten."""

_STEPS_A_MESSAGE = 10_000  # some templates look through all messages for each one

MOST_CHARACTERS = 10_000_000
"""The most characters of a text that a template makes, beyond four times those of the conversation."""

MOST_ITEMS = 1_000_000
"""The most items of a list that a template makes, nested ones included."""

MOST_SECONDS = 20
"""The most time, for steps that are slow one by one; a template within the other bounds stays far below it."""

_LARGEST_WIDTH = 10_000  # characters of padding and indentation
_LARGEST_IN_JSON = 100  # characters before each item of a list or object
_MOST_BITS = 4096  # bits of an integer
_WIDTH = re.compile(r"\d{5}|\*|\{[^{}]*\{")  # in a format: many digits, or a width that is a value itself

_PADDING = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "tojson", "round", "truncate"}


class Bounds:
    """Counts what rendering one conversation takes.

    messages, said: the number of messages, and of their characters.
    Every check raises UserError, because the template is at fault and not the record.
    """

    def __init__(self, where: str, messages: int, said: int) -> None:
        self._where = where
        self._steps_left = self._steps = MOST_STEPS + _STEPS_A_MESSAGE * messages
        self._characters = MOST_CHARACTERS + 4 * said
        self._end = time.monotonic() + MOST_SECONDS

    def step(self) -> None:
        """Counts one step."""
        self._steps_left -= 1
        if self._steps_left < 0:
            raise self._error(f"takes more than {self._steps} steps", "is there a loop in it that hardly ends?")
        if self._steps_left % 64 == 0 and time.monotonic() > self._end:
            raise self._error(f"takes longer than {MOST_SECONDS} seconds", "is there a loop in it that hardly ends?")

    def check_length(self, characters: int) -> None:
        """Refuses a text of this many characters, before it is made."""
        if characters > self._characters:
            raise self._error(f"makes a text of more than {self._characters} characters", "what does it repeat?")

    def check_items(self, count: int) -> None:
        """Refuses a list of this many items, before it is made."""
        if count > MOST_ITEMS:
            raise self._error(f"makes a list of more than {MOST_ITEMS} items", "what does it repeat?")

    def check_size(self, value: Any) -> None:
        """Refuses a value that is too large when it is written out; a part that it holds twice counts twice."""
        items = characters = 0
        waiting = [value]
        while waiting:
            item = waiting.pop()
            items += 1
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, dict):
                waiting += [*item.keys(), *item.values()]
                self.check_items(items + 2 * len(item))
            elif isinstance(item, list | tuple | set | frozenset):
                self.check_items(items + len(item))
                waiting += item
            self.check_items(items)
            self.check_length(characters)

    def check_operator(self, operator: str, left: Any, right: Any) -> None:
        """Refuses an operator whose result is too large."""
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(sequence, str):
                    self.check_length(len(sequence) * times)
                elif isinstance(times, int) and isinstance(sequence, list | tuple):
                    self.check_items(len(sequence) * times)
            if isinstance(left, int) and isinstance(right, int):
                self._check_bits(left.bit_length() + right.bit_length())
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self._check_bits(left.bit_length() * right)
        elif operator == "+":
            if isinstance(left, str) and isinstance(right, str):
                self.check_length(len(left) + len(right))
            elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
                self.check_items(len(left) + len(right))
        elif operator == "%" and isinstance(left, str):
            self.check_format(left, right)

    def check_call(self, name: str, text: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Refuses a call of a text's method or of a filter whose result is too large."""
        values = (*arguments, *named.values())
        if name in _PADDING:
            width = max((abs(value) for value in values if isinstance(value, int)), default=0)
            largest = _LARGEST_IN_JSON if name == "tojson" else _LARGEST_WIDTH
            separators = [len(str(item)) for value in values if isinstance(value, list | tuple) for item in value]
            if max(width, *separators, 0) > largest:
                raise self._error(f"pads a text to more than {largest} characters", "take a smaller width")
            lines = text.count("\n") + text.count("\t") + 1 if isinstance(text, str) else 1
            texts = sum(len(value) for value in values if isinstance(value, str))
            self.check_length((len(text) if isinstance(text, str) else 0) + (width + texts) * lines)
        elif name == "replace" and isinstance(text, str) and len(arguments) > 1:
            old, new = (value if isinstance(value, str) else str(value) for value in arguments[:2])
            self.check_length(len(text) + len(new) * (text.count(old) if len(new) > len(old) else 0))
        elif name in ("format", "format_map"):
            self.check_format(text, values)

    def check_join(self, separator: str, texts: list[Any]) -> None:
        """Refuses a join whose result is too large."""
        self.check_length(len(separator) * len(texts) + sum(len(text) for text in texts if isinstance(text, str)))

    def check_format(self, text: Any, values: Any) -> None:
        """Refuses a format that pads without bound."""
        if isinstance(text, str) and _WIDTH.search(text):
            raise self._error(f"pads a text to more than {_LARGEST_WIDTH} characters", "take a smaller width")
        self.check_size(values)
        count = text.count("%") + text.count("{") if isinstance(text, str) else 0
        longest = max((len(value) for value in values if isinstance(value, str)), default=0) if values else 0
        self.check_length((len(text) if isinstance(text, str) else 0) + count * longest)

    def _check_bits(self, bits: int) -> None:
        if bits > _MOST_BITS:
            raise self._error(f"makes a number of more than {_MOST_BITS} bits", "what does it multiply?")

    def _error(self, what: str, hint: str) -> UserError:
        return UserError(f"the chat template {what} for {self._where}: {hint}")

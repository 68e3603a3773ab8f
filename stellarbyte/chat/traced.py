"""A text that knows where each of its characters comes from."""

# ruff: noqa: D102 - these are str's own methods

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

WRITTEN = "\0"
"""The origin of characters that the template itself writes."""


class TracingError(Exception):
    """A template changes a text in a way that loses its characters' origins."""


class Traced(str):
    """A text that keeps its characters' origins through all that chat templates do to texts.

    `origins` is a string of the same length. Each of its characters is a code: WRITTEN stands for the template itself,
    and the caller gives the others their meaning. Comparing, hashing and searching are those of str.
    """

    __slots__ = ("origins",)
    origins: str

    def __new__(cls, text: str, origins: str) -> "Traced":
        self = super().__new__(cls, text)
        self.origins = origins
        assert len(self) == len(origins), (len(self), len(origins))
        return self

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> "Traced":
        return Traced(str.__getitem__(self, key), self.origins[key])

    def __iter__(self) -> Iterator[str]:
        return (Traced(character, origin) for character, origin in zip(str.__str__(self), self.origins, strict=True))

    def __add__(self, other: str) -> "Traced":
        return Traced(str.__add__(self, other), self.origins + traced(other).origins)

    def __radd__(self, other: str) -> "Traced":
        if not isinstance(other, str):
            return NotImplemented
        return Traced(str.__add__(other, self), traced(other).origins + self.origins)

    def __mul__(self, times: SupportsIndex) -> "Traced":
        return Traced(str.__mul__(self, times), self.origins * times)

    __rmul__ = __mul__

    def lstrip(self, chars: str | None = None, /) -> "Traced":
        return self[len(self) - len(str.lstrip(self, chars)) :]

    def rstrip(self, chars: str | None = None, /) -> "Traced":
        return self[: len(str.rstrip(self, chars))]

    def strip(self, chars: str | None = None, /) -> "Traced":
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str, /) -> "Traced":
        return self[len(prefix) :] if prefix and self.startswith(prefix) else self

    def removesuffix(self, suffix: str, /) -> "Traced":
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._parts(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._parts(str.splitlines(self, True), "")
        if keepends:
            return whole
        bare = str.splitlines(self)
        return [line[: len(kept)] for line, kept in zip(whole, bare, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._parts(str.partition(self, sep), "")
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._parts(str.rpartition(self, sep), "")
        return before, found, after

    def join(self, texts: Iterable[str], /) -> "Traced":
        items = list(texts)
        return Traced(str.join(self, items), self.origins.join([traced(item).origins for item in items]))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> "Traced":
        if not old:
            raise TracingError("replace of an empty text")
        return traced(new).join(self.split(old, count))

    def lower(self) -> "Traced":
        return self._respelt(str.lower(self), str.lower)

    def upper(self) -> "Traced":
        return self._respelt(str.upper(self), str.upper)

    def casefold(self) -> "Traced":
        return self._respelt(str.casefold(self), str.casefold)

    def swapcase(self) -> "Traced":
        return self._respelt(str.swapcase(self), str.swapcase)

    def title(self) -> "Traced":
        return self._respelt(str.title(self), str.title)

    def capitalize(self) -> "Traced":
        return self._respelt(str.capitalize(self), str.title)

    def _parts(self, parts: Sequence[str], sep: str | None) -> list[str]:
        """The parts that `sep` separates, or any white space if it is None, with their origins."""
        found: list[str] = []
        at = 0
        for part in parts:
            if sep is None:
                at = str.find(self, part, at)
            found.append(self[at : at + len(part)])
            at += len(part) + len(sep or "")
        return found

    def _respelt(self, text: str, respell: Any) -> "Traced":
        if len(text) == len(self):
            return Traced(text, self.origins)
        widths = [len(respell(character)) for character in str.__str__(self)]  # "ß" becomes "SS"
        if sum(widths) != len(text):
            raise TracingError("another case")
        return Traced(text, "".join(origin * width for origin, width in zip(self.origins, widths, strict=True)))


def traced(text: str) -> Traced:
    """The text itself if it is traced, else the text as one that the template wrote."""
    return text if isinstance(text, Traced) else Traced(text, WRITTEN * len(text))


def holds_traced(value: Any) -> bool:
    """Whether a value is or contains a text with characters that the template did not write."""
    if isinstance(value, Traced):
        return value.origins.strip(WRITTEN) != ""
    if isinstance(value, dict):
        return any(holds_traced(item) for pair in value.items() for item in pair)
    return isinstance(value, list | tuple) and any(holds_traced(item) for item in value)

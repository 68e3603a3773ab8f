"""The origins of the characters of a rendered conversation, and the codes that stand for them in Traced texts."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from stellarbyte.chat.bounds import Bounds
from stellarbyte.chat.traced import WRITTEN, Traced, traced


class Origin(NamedTuple):
    """The origin of a character.

    message: the index of the message that says it; None if the template writes it; or TOOLS, or SEVERAL.
    field: the key of the message under which it stands, or None.
    block: the number of the {% generation %} block that holds it, or 0.
    inside: the index of the message in whose turn of a loop it was written, or None.
    """

    message: int | None = None
    field: str | None = None
    block: int = 0
    inside: int | None = None


TOOLS, SEVERAL = -1, -2


class Message(dict[str, Any]):
    """A message as a template sees it; `number` is its index in the conversation."""

    number: int


@dataclass
class Rendering:
    """The state of rendering one conversation: its bounds, and the codes of its origins."""

    bounds: Bounds
    origins: list[Origin] = field(default_factory=lambda: [Origin()])
    codes: dict[Origin, str] = field(default_factory=lambda: {Origin(): WRITTEN})
    blocks: int = 0

    def code(self, origin: Origin) -> str:
        """The character that stands for an origin."""
        if origin not in self.codes:
            self.codes[origin] = chr(len(self.origins))
            self.origins.append(origin)
        return self.codes[origin]

    def changed(self, text: Traced, **changes: Any) -> Traced:
        """The text with some of its origins' fields replaced."""
        codes = {ord(code): self.code(self.origins[ord(code)]._replace(**changes)) for code in set(text.origins)}
        return Traced(text, text.origins.translate(codes))

    def written_out(self, value: Any, text: str) -> str:
        """The text of a list or object; all of its characters get the origin of the texts in it."""
        found = set(_codes(value)) - {WRITTEN}
        if not found:
            return text
        sources = {self.origins[ord(code)][:2] for code in found}
        origin = Origin(*sources.pop()) if len(sources) == 1 else Origin(SEVERAL)
        return Traced(text, self.code(origin) * len(text))


def _codes(value: Any) -> str:
    if isinstance(value, str):
        return traced(value).origins
    if isinstance(value, dict):
        return "".join(_codes(item) for pair in value.items() for item in pair)
    return "".join(map(_codes, value)) if isinstance(value, list | tuple | set | frozenset) else ""

"""A memory as a conversation uses it: what a message recalls, what is kept of it, and what its user may ask."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from stellarbyte.errors import UserError
from stellarbyte.memory.entries import Decision, Entry, Found
from stellarbyte.memory.memory import Memory
from stellarbyte.memory.words import content_of

# Entries that are looked at for a prompt; how many of them it holds is for the budget of tokens.
_LOOKED_AT = 24
_LISTED = 20
# A follow-up is searched with so many earlier messages at most, and what these find counts this much.
_FOLLOWED, _COUNTS = 3, 0.8
# A follow-up has a word that stands for what was named before, or is joined to it, and says little of its own.
_STANDS_FOR = re.compile(
    r"\b(?:it|its|he|she|him|his|her|hers|they|them|their|theirs|(?:that|this) one|those|these)\b|"
    r"^(?:and|or|but|what about|how about)\b|[它他她]|^(?:那|还有|其)|呢[？?]?$",
    re.IGNORECASE,
)
_SAYS_LITTLE = 3
_SHOWN = 120


@dataclass(frozen=True)
class Recall:
    """How a conversation uses its memory.

    Attributes:
        memory: the store, opened for the user who talks.
        writes: whether what the user says goes through the gate; what the model answers never does.
        most_tokens: the most tokens of a prompt that may be recalled.
        floor: the least score of what is recalled, from 0 to 1; None: the store's own.
    """

    memory: Memory
    writes: bool = False
    most_tokens: int = 512
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.most_tokens < 1:
            raise UserError(f"--memory-tokens {self.most_tokens} must be at least 1")
        if self.floor is not None and not 0 <= self.floor <= 1:
            raise UserError(f"--memory-floor {self.floor} must be a number from 0 to 1")

    def search(self, message: str, earlier: Sequence[str] = ()) -> list[Found]:
        """What the message recalls, the best first.

        A follow-up such as "and its colour?" is also looked for with the message that it follows, which counts less.

        earlier: what the user has said before, from the oldest.

        Raises:
            UserError: the store cannot be read.
        """
        if not message.strip():
            return []
        found = self.memory.search(message, _LOOKED_AT, floor=self.floor)
        said = [message]
        for before in reversed(earlier[-_FOLLOWED:]):
            if not follows(said[0]):
                break
            said.insert(0, before)
        if len(said) == 1:
            return found
        floor = self.memory.settings.floor if self.floor is None else self.floor
        known = {one.entry.id: one for one in found}
        for one in self.memory.search(" ".join(said), _LOOKED_AT, floor=min(1.0, floor / _COUNTS)):
            less = replace(one, score=one.score * _COUNTS)
            if one.entry.id not in known or known[one.entry.id].score < less.score:
                known[one.entry.id] = less
        return sorted(known.values(), key=lambda one: -one.score)[:_LOOKED_AT]

    def keep(self, message: str, used: Sequence[Found], earlier: Sequence[str] = ()) -> tuple[Decision, ...]:
        """Counts what was used in the prompt, and hands the message to the gate if this memory writes.

        earlier: what the user has said before, from the oldest.

        Raises:
            UserError: the store cannot be written.
        """
        if used:
            self.memory.count_uses([found.entry.id for found in used])
        if not self.writes or not message.strip():
            return ()
        recalled = [found.entry for found in used]
        return tuple(self.memory.add_turn(message, source="chat", recalled=recalled, earlier=earlier))

    def remember(self, text: str) -> str:
        """Hands a note to the gate, and says what became of it."""
        if not text:
            raise UserError("/remember wants a text: /remember my dog is called Rex")
        return told(self.memory.add(text, source="chat", kind="note"))

    def forget(self, what: str) -> str:
        """Deletes the entry of a number, or the only one that has all these words; otherwise says which there are."""
        if not what:
            raise UserError("/forget wants a number or words of what to forget: /memories shows both")
        number = what.removeprefix("#")
        if number.isdecimal():
            if not self.memory.delete([int(number)]):
                raise UserError(f"there is no memory {number}: /memories shows which there are")
            return f"memory {number} is deleted for good"
        found = [one.entry for one in self.memory.search(what, _LISTED, floor=0.0)]
        words = what.casefold().split()
        matching = [entry for entry in found if all(word in entry.text.casefold() for word in words)]
        if len(matching) == 1:
            self.memory.delete([matching[0].id])
            return f"memory {matching[0].id} is deleted for good: {_one_line(matching[0].text)}"
        if not found:
            raise UserError(f"no memory has to do with {what!r}: /memories shows which there are")
        return "\n".join(["which of these? /forget and its number", *map(entry_line, matching or found)])

    def listing(self, words: str) -> str:
        """The newest entries, or with words the best that they find, a line each."""
        if words:
            found = self.memory.search(words, _LISTED, floor=0.0)
            return "\n".join(entry_line(one.entry) for one in found) or f"no memory has to do with {words!r}"
        entries = self.memory.list(limit=_LISTED, newest=True)
        count = len(self.memory)
        more = [f"and {count - len(entries)} older ones: /memories WORDS looks for some"]
        return (
            "\n".join([*map(entry_line, entries), *(more if count > len(entries) else [])])
            or "there are no memories yet"
        )


def follows(message: str) -> bool:
    """Whether a message means something that was named before it."""
    return _STANDS_FOR.search(message.strip()) is not None and len(set(content_of(message))) <= _SAYS_LITTLE


def told(decision: Decision) -> str:
    """What the gate has decided, as a sentence."""
    match decision.outcome:
        case "added":
            return f"remembered as {decision.entry}"
        case "counted":
            return f"known already, as {decision.entry}: {decision.reason}"
        case "replaced":
            return f"remembered as {decision.entry}, whose old text goes into its history: {decision.reason}"
        case _:
            return f"not remembered: {decision.reason}"


def entry_line(entry: Entry) -> str:
    """An entry on a line: its number, day, source and text."""
    day = datetime.fromtimestamp(entry.updated, UTC).date().isoformat()
    source = f", {_one_line(entry.source)}" if entry.source else ""
    return f"{entry.id:>4}  {day}{source}: {_one_line(entry.text)}"


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _SHOWN else f"{joined[:_SHOWN]}…"

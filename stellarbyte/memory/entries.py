"""What a memory holds and answers: entries, what a search has found, and what the gate has decided."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

# note: the user has asked for it. turn: a sentence of a conversation. passage: a piece of a document.
Kind = Literal["note", "turn", "passage"]
KINDS: tuple[str, ...] = get_args(Kind)

# added: a new entry. counted: an entry says the same already, and its counter has risen. replaced: an entry had another
# value, which went into its history. updated, deleted, evicted, expired: what happened to an entry later.
# refused: nothing was written.
Outcome = Literal["added", "counted", "replaced", "refused", "updated", "deleted", "evicted", "expired"]


@dataclass(frozen=True)
class Entry:
    """A text that is remembered.

    Attributes:
        id: a number that no other entry of the store gets, not even after this one is deleted.
        text: what is remembered.
        source: where it comes from, such as "chat" or "notes.md:12-20"; may be empty.
        user: the namespace; a search never leaves it.
        kind: note, turn or passage.
        language: an ISO 639-1 code as far as the script tells it, otherwise "und".
        created, updated, last_used: seconds since 1970; last_used is None before the first use.
        uses: how often it was recalled into a prompt.
        seen: how often it was said: 1, and 1 more for each near duplicate that came later.
        expires: the time from which on it is deleted; None: never.
    """

    id: int
    text: str
    source: str
    user: str
    kind: Kind
    language: str
    created: float
    updated: float
    last_used: float | None
    uses: int
    seen: int
    expires: float | None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, times in UTC as ISO 8601 writes them."""
        times = {name: iso_time(getattr(self, name)) for name in ("created", "updated", "last_used", "expires")}
        return {**asdict(self), **times}


@dataclass(frozen=True)
class Found:
    """An entry that a search has found.

    Attributes:
        entry: the entry.
        score: how well it answers the query, from 0 to 1; a search leaves out what is below its floor.
        ranks: its place in each part's own list, from 1: "words", "vectors"; a part that has not found it is missing.
        parts: what each part has measured: "coverage" (the share of the query's words, by weight), "cosine".
    """

    entry: Entry
    score: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        parts = {name: round(value, 4) for name, value in self.parts.items()}
        return {**self.entry.to_dict(), "score": round(self.score, 4), "ranks": dict(self.ranks), "parts": parts}


@dataclass(frozen=True)
class Decision:
    """What the gate has decided on a text, or what has happened to an entry, as the log keeps it.

    Attributes:
        outcome: see `Outcome`.
        reason: the rule that has decided, in words.
        scores: what the rule measured.
        entry: the entry that was written, counted or replaced, or the one that the text was held against; None: none.
        text: the text, where it may be kept: not of a secret, and not of anything that was deleted since.
        time: seconds since 1970.
        user: the namespace.
        source: where the text came from.
    """

    outcome: Outcome
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)
    entry: int | None = None
    text: str | None = None
    time: float = 0.0
    user: str = ""
    source: str = ""

    @property
    def kept(self) -> bool:
        """Whether the store now says what the text says."""
        return self.outcome in ("added", "counted", "replaced", "updated")

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        scores = {name: round(value, 4) for name, value in self.scores.items()}
        return {**asdict(self), "scores": scores, "time": iso_time(self.time)}


def iso_time(seconds: float | None) -> str | None:
    """A time in UTC, to the second."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")

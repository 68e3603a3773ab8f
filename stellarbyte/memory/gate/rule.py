"""What a rule of the gate is given, and what it answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from stellarbyte.memory.entries import Entry, Kind, Outcome
from stellarbyte.memory.settings import MemorySettings


@dataclass(frozen=True)
class Candidate:
    """A text that asks to be remembered.

    Attributes:
        text, source, kind, expires: as the entry will have them.
        recalled: the entries that the prompt of this turn held.
        vector: what the embedder makes of the text, (D,); None: there is no embedder.
        loss, judge: how surprising the text is, in nats for a token, and to which judge; None: see `judged`.
    """

    text: str
    source: str
    kind: Kind
    recalled: tuple[Entry, ...] = ()
    expires: float | None = None
    vector: np.ndarray | None = None
    loss: float | None = None
    judge: str | None = None


class Neighbour(NamedTuple):
    """An entry that is near to a candidate.

    Attributes:
        entry: the entry.
        cosine: of their whitened vectors; None: it was found by words alone.
    """

    entry: Entry
    cosine: float | None


class Verdict(NamedTuple):
    """What a rule has decided.

    Attributes:
        outcome: counted, replaced or refused.
        reason: the rule in words.
        scores: what it measured.
        entries: the entries that it was held against; the first is the one that is counted or replaced.
        text: what the replaced entry is to say; None: the candidate's text.
        may_be_logged: whether the log may hold the text.
    """

    outcome: Outcome
    reason: str
    scores: dict[str, float] = {}  # noqa: RUF012 - never written to
    entries: tuple[Entry, ...] = ()
    text: str | None = None
    may_be_logged: bool = True


@dataclass(frozen=True)
class Surroundings:
    """What the rules hold a candidate against.

    Attributes:
        settings: the store's.
        neighbours: the user's nearest entries, the nearest first.
        same_frame: the user's entries that say something of the same subject in the same respect.
        foreseen: see share_foreseen; None: the judge is not asked.
    """

    settings: MemorySettings
    neighbours: Sequence[Neighbour] = field(default_factory=tuple)
    same_frame: Sequence[Entry] = field(default_factory=tuple)
    foreseen: float | None = None

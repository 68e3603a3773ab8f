"""The gate: its rules one after the other, and what is written and logged by the first that decides."""

from dataclasses import dataclass, replace

import numpy as np

from stellarbyte.memory.entries import Decision, Entry, Kind
from stellarbyte.memory.opening import Opened
from stellarbyte.memory.settings import MemorySettings
from stellarbyte.memory.words import language_of


@dataclass(frozen=True)
class Candidate:
    """A text that asks to be remembered.

    Attributes:
        text, source, kind, expires: as the entry will have them.
        recalled: the entries that the prompt of this turn held.
        vector: what the embedder makes of the text, (D,); None: there is none.
    """

    text: str
    source: str
    kind: Kind
    recalled: tuple[Entry, ...]
    expires: float | None
    vector: np.ndarray | None


def decide(candidate: Candidate, store: Opened, owner: str, settings: MemorySettings, now: float) -> Decision:
    """Decides, writes and logs, inside a transaction that writes."""
    tables = store.tables
    same = tables.same_text(owner, candidate.text)
    if same is not None:
        tables.said_again(same, now)
        decision = Decision("counted", "an entry has the same text", {}, same)
    else:
        entry = Entry(
            0, candidate.text, candidate.source, owner, candidate.kind, language_of(candidate.text), now, now, None,
            0, 1, candidate.expires,
        )  # fmt: skip
        number = tables.insert(entry)
        if candidate.vector is not None and store.nearest is not None:
            tables.set_vectors(owner, [(number, store.nearest.to_column(candidate.vector))])
        decision = Decision("added", "it is new", {}, number)
    decision = replace(decision, time=now, user=owner, source=candidate.source)
    tables.decisions.write(decision, settings.log_entries)
    return decision

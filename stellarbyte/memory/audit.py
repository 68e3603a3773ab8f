"""Runs the gate over what a memory holds already: junk, duplicates, and what is left of entries that are gone."""

from dataclasses import dataclass
from typing import Any

from stellarbyte.memory.entries import Entry
from stellarbyte.memory.gate.boilerplate import refuse_boilerplate
from stellarbyte.memory.gate.duplicates import count_duplicates, jaccard
from stellarbyte.memory.gate.rule import Candidate, Neighbour, Surroundings
from stellarbyte.memory.gate.secrets import refuse_secrets
from stellarbyte.memory.gate.statements import refuse_no_statement
from stellarbyte.memory.minhash import similar_pairs
from stellarbyte.memory.opening import Opened
from stellarbyte.memory.tables import Alive
from stellarbyte.memory.words import content_of

# What stands in a table for an entry that is not there any more.
_GHOSTS = {
    "terms": "SELECT COUNT(*) FROM words WHERE memory NOT IN (SELECT id FROM memories)",
    "counts of terms": "SELECT COUNT(*) FROM terms t WHERE entries <> (SELECT COUNT(*) FROM words w "
    "WHERE w.owner = t.owner AND w.term = t.term)",
    "vectors": "SELECT COUNT(*) FROM vectors WHERE memory NOT IN (SELECT id FROM memories)",
    "frames": "SELECT COUNT(*) FROM frames WHERE memory NOT IN (SELECT id FROM memories)",
    "old texts": "SELECT COUNT(*) FROM history WHERE memory NOT IN (SELECT id FROM memories)",
    "texts in the log": "SELECT COUNT(*) FROM decisions WHERE text IS NOT NULL AND memory IS NOT NULL "
    "AND memory NOT IN (SELECT id FROM memories)",
    "counts": "SELECT COUNT(*) FROM totals t WHERE entries <> (SELECT COUNT(*) FROM memories m "
    "WHERE m.owner = t.owner)",
}


@dataclass(frozen=True)
class Audit:
    """What an audit has found.

    Attributes:
        entries: the number of entries that were looked at.
        junk: entries that the gate would refuse, each with the reason.
        duplicates: pairs of entries of which the second says what the first says, with the share of words in common.
        ghosts: how much is left, by kind, of entries that are gone; empty of a sound store.
    """

    entries: int
    junk: tuple[tuple[Entry, str], ...]
    duplicates: tuple[tuple[Entry, Entry, float], ...]
    ghosts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        pairs = [
            {"first": one.id, "second": two.id, "similarity": round(share, 4)} for one, two, share in self.duplicates
        ]
        junk = [{"id": entry.id, "text": entry.text, "reason": reason} for entry, reason in self.junk]
        return {"entries": self.entries, "junk": junk, "duplicates": pairs, "ghosts": self.ghosts}


def audit(store: Opened, owner: str, alive: Alive) -> Audit:
    """Looks at all of a user's entries, and at the tables of the whole store. Nothing is changed."""
    with store.connection.reading():
        entries = store.tables.listed(owner, alive)
        settings = store.settings()
        ghosts = {name: store.connection.rows(statement)[0][0] for name, statement in _GHOSTS.items()}
    alone = Surroundings(settings)  # whom entries named when it came in, and what surprised a model, is not asked again
    junk: list[tuple[Entry, str]] = []
    for entry in entries:
        candidate = _candidate(entry)
        rules = (refuse_secrets, refuse_boilerplate, *((refuse_no_statement,) if entry.kind == "turn" else ()))
        verdict = next((found for rule in rules if (found := rule(candidate, alone))), None)
        if verdict is not None:
            junk.append((entry, verdict.reason))
    duplicates: list[tuple[Entry, Entry, float]] = []
    for first, second in similar_pairs([entry.text for entry in entries]):
        one, two = entries[first], entries[second]
        for old, new in ((one, two), (two, one)):
            verdict = count_duplicates(_candidate(new), Surroundings(settings, (Neighbour(old, None),), (old,)))
            if verdict is not None and verdict.outcome == "counted":
                duplicates.append((old, new, jaccard(content_of(old.text), content_of(new.text))))
                break
    return Audit(len(entries), tuple(junk), tuple(duplicates), {name: count for name, count in ghosts.items() if count})


def _candidate(entry: Entry) -> Candidate:
    return Candidate(entry.text, entry.source, entry.kind)

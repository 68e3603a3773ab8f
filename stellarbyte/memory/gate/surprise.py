"""Refuses what the model foresees after it has read what a search finds."""

from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict
from stellarbyte.memory.tables import Tables

GIVEN = 3
"""The most entries, of those that a search finds, that the judge reads before a text."""

# A judge can tell what it knows from what is new if no more than this share of the entries surprised it by less than
# half a nat when they came in; so many entries must have been measured.
_LEAST_NATS, _FEW, _LEAST_ENTRIES = 0.5, 0.05, 20


def share_foreseen(tables: Tables, owner: str, candidate: Candidate, surprise: float) -> float | None:
    """The share of a user's entries that surprised the judge so little that `surprise` of that is less than this one.

    None: it cannot be told, as too few entries were measured, or the judge is no judge.
    """
    if candidate.loss is None or candidate.judge is None or surprise == 0:
        return None
    unsurprising = tables.share_below(owner, candidate.judge, _LEAST_NATS, _LEAST_ENTRIES)
    if unsurprising is None or unsurprising > _FEW:
        return None
    return tables.share_below(owner, candidate.judge, candidate.loss / surprise, _LEAST_ENTRIES)


def refuse_foreseen(candidate: Candidate, around: Surroundings) -> Verdict | None:
    """The measure is the store's own: the median of how much its entries surprised the judge when they came in."""
    if candidate.loss is None or around.foreseen is None or around.foreseen >= 0.5:
        return None
    scores = {"surprise": candidate.loss, "share_below": around.foreseen}
    return Verdict("refused", "the model foresees it", scores, tuple(one.entry for one in around.neighbours[:1]))

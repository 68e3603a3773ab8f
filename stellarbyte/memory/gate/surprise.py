"""Refuses what the model foresees after it has read what a search finds."""

from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict

GIVEN = 3
"""The most entries, of those that a search finds, that the judge reads before a text."""


def refuse_foreseen(candidate: Candidate, around: Surroundings) -> Verdict | None:
    """The measure is the store's own: the losses that its entries had when they came in."""
    if candidate.loss is None or around.foreseen is None or around.foreseen >= around.settings.surprise:
        return None
    scores = {"loss": candidate.loss, "share_below": around.foreseen}
    return Verdict("refused", "the model foresees it", scores, tuple(one.entry for one in around.neighbours[:1]))

"""Refuses recalled text that comes back: otherwise a memory fills up with its own words."""

from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict
from stellarbyte.memory.words import content_of, negations_in

# The share of a text's runs of three words that one recalled entry may have, and of words that the entry may lack.
_MOST, _FEWEST = 0.8, 0.1


def refuse_recalled(candidate: Candidate, _: Surroundings) -> Verdict | None:
    """A text is a recalled one if an entry that the prompt of this turn held has its words, in the same order."""
    words = content_of(candidate.text)
    runs = _runs(words)
    for entry in candidate.recalled:
        known = content_of(entry.text)
        share = len(runs & _runs(known, min(3, len(words)))) / max(1, len(runs))
        new = len(set(words) - set(known)) / max(1, len(set(words)))
        if words and share >= _MOST and new <= _FEWEST and negations_in(words) == negations_in(known):
            return Verdict("refused", "it was recalled in this turn", {"containment": share}, (entry,))
    return None


def _runs(words: list[str], length: int = 3) -> set[tuple[str, ...]]:
    length = max(1, min(length, len(words)))
    return {tuple(words[first : first + length]) for first in range(len(words) - length + 1)}

"""Counts a text that an entry says already, in other words or in more."""

from stellarbyte.memory.gate.frames import frames_of, same_value, says_nothing_else
from stellarbyte.memory.gate.rule import Candidate, Surroundings, Verdict
from stellarbyte.memory.words import content_of, negations_in, values_of

# The cosine of whitened vectors from which on the order of words no longer matters.
_SAME_MEANING = 0.9
# Fewer words than that differ by more than `duplicate` allows if they differ by one.
_LONG = 12
# Words that an entry has which a text may say more of.
_LEAST = 3


def count_duplicates(candidate: Candidate, around: Surroundings) -> Verdict | None:
    """A text is a duplicate if an entry has all its words in their order, or nearly all of a long text's.

    Negations must be the same, and in long texts numbers and names: what differs in these is another fact.
    """
    words = content_of(candidate.text)
    if not words:
        return None
    for entry in around.same_frame:
        if _same_frames(candidate.text, entry.text):
            return Verdict(
                "counted",
                "an entry says the same of the same",
                {"jaccard": jaccard(words, content_of(entry.text))},
                (entry,),
            )
    for entry, cosine in around.neighbours:
        known = content_of(entry.text)
        similarity = jaccard(words, known)
        scores = {"jaccard": similarity} | ({} if cosine is None else {"cosine": cosine})
        if negations_in(words) != negations_in(known):
            continue
        meant = cosine is not None and cosine >= _SAME_MEANING and set(words) <= set(known)
        if _in_order(words, known) or meant:
            return Verdict("counted", "an entry says the same", scores, (entry,))
        if _in_order(known, words) and len(known) >= _LEAST and "passage" not in (entry.kind, candidate.kind):
            return Verdict("replaced", "it says the same and more", scores, (entry,))
        nearly = similarity >= around.settings.duplicate and min(len(words), len(known)) >= _LONG
        if nearly and values_of(candidate.text) == values_of(entry.text):
            return Verdict("counted", "an entry says nearly the same", scores, (entry,))
    return None


def jaccard(first: list[str], second: list[str]) -> float:
    """The share of the words of two texts that both have."""
    one, other = set(first), set(second)
    return len(one & other) / max(1, len(one | other))


def _same_frames(text: str, known: str) -> bool:
    """Whether a text says nothing but what an entry says too, such as "moved to Rome" and "lives in Rome"."""
    old = frames_of(known)
    return says_nothing_else(text) and all(
        any(new.is_of(one) and new.denied == one.denied and same_value(new.value, one.value) for one in old)
        for new in frames_of(text)
    )


def _in_order(words: list[str], known: list[str]) -> bool:
    """Whether all words stand in `known`, in their order."""
    rest = iter(known)
    return all(word in rest for word in words)

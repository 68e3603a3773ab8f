"""Scores how well an entry answers a query, by the words that it has of it and by the cosine of their vectors."""

from stellarbyte.memory.word_index import Trust

# What a cosine adds to the share of words for each standard deviation that it is above the usual one of questions that
# a store cannot answer, the first left out, and what it takes away for each that it is below: twice as much, because a
# word that a question shares by chance ("stock market", "flea markets") leaves the cosine at the usual one, and few
# answers are there. Seeds 1 to 3 of tests/memory_trial.py chose the numbers.
_ADDS, _TAKES = 0.03, 0.06
_LEAST, _MOST = -3.0, 8.0
# A cosine so many standard deviations above the usual one scores as much as a store's floor is by default: without any
# word beside words that other entries have, and in a search by vectors alone, which finds nothing otherwise.
BESIDE_WORDS, ALONE = 6.0, 3.0
_SCORES = 0.2


def score(coverage: float, cosine: float | None, trust: Trust) -> float:
    """The score from 0 to 1; coverage: the share of the query's words; cosine: None if there are no vectors."""
    if cosine is None:
        return coverage
    above = min(_MOST, max(_LEAST, (cosine - trust.usual) / trust.spread - 1))
    said = coverage + trust.weight * above * (_ADDS if above > 0 else _TAKES)
    return min(1.0, max(0.0, said, score_of_cosine(cosine, trust, BESIDE_WORDS)))


def score_of_cosine(cosine: float, trust: Trust, deviations: float) -> float:
    """The score from 0 to 1 by the cosine alone; deviations: how far above the usual one it is enough."""
    enough = min(trust.usual + deviations * trust.spread, 0.99)
    if cosine >= enough:
        return min(1.0, _SCORES + (1 - _SCORES) * (cosine - enough) / (1 - enough))
    return max(0.0, _SCORES * (cosine - trust.usual) / (enough - trust.usual))

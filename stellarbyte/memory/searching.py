"""Searches a user's entries by words, by vectors, or by both."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from stellarbyte.errors import UserError, shown
from stellarbyte.memory.checks import checked_text
from stellarbyte.memory.entries import Found
from stellarbyte.memory.fusion import fuse
from stellarbyte.memory.scoring import ALONE, score, score_of_cosine
from stellarbyte.memory.tables import Alive, Tables
from stellarbyte.memory.vectors import Nearest
from stellarbyte.memory.word_index import Trust
from stellarbyte.memory.words import is_pair, terms_of

How = Literal["hybrid", "words", "vectors"]

# The entries that each part hands over, at least; what has expired is taken away after that.
_DEPTH = 50
# The share of a query that a result has is measured by the squares of the terms' weights: a question has a rare word or
# two, such as a name, among several that many entries have.
_SHARE = 2.0
# What the share of a pair of characters counts if no entry has it: where words are not spaced it may be the end of one
# word and the beginning of the next, which asks for nothing.
_ACROSS = 0.8
# Of the results that BM25 puts first, so many are ordered by their places in that order and, twice as much, by their
# shares: BM25 alone puts several common words before a rare one.
_REORDERED = 200
_SHARES_COUNT = 2.0
# The terms of a long query that are searched: its rarest.
_MOST_TERMS = 32
# Entries are looked for by the rarest terms, at least two, and ordered by all terms after that: to read a million
# entries' rows of frequent words takes most of a second. In a large store a term is among the rarest as long as these
# together stand in no more entries than the first number; or than the second, if all but the terms before it have no
# more than this share of the query's, which is too little to be found by.
_MOST_POSTINGS, _CHEAP_POSTINGS, _LITTLE, _FEWEST_TERMS = 100_000, 5_000, 0.1, 2
# Entries without any of the terms that are thought to be there: in a store of a few entries a term that one of them has
# would weigh a fraction of a term that none has, and no entry would be above the floor.
_OTHERS = 100


class Query(NamedTuple):
    """What is searched for.

    Attributes:
        text: the query.
        vector: what the embedder makes of it, (D,); None: words alone.
        trust: how far the vectors can be trusted.
    """

    text: str
    vector: np.ndarray | None
    trust: Trust = Trust()


def check_search(query: str, limit: int, how: str, floor: float | None, *, has_embedder: bool) -> None:
    """Raises UserError: something that is searched for, or how, cannot be."""
    checked_text(query, "query")
    if how not in get_args(How):
        raise UserError(f"how {shown(how)} must be hybrid, words or vectors")
    if how == "vectors" and not has_embedder:
        raise UserError("a search by vectors needs an embedder: give one, or search by words")
    if limit < 1:
        raise UserError(f"limit {limit} must be at least 1")
    if floor is not None and not 0 <= floor <= 1:
        raise UserError(f"floor {floor} must be a number from 0 to 1")


def search(
    tables: Tables, nearest: Nearest | None, owner: str, query: Query, how: How, limit: int, floor: float, alive: Alive
) -> list[Found]:
    """The entries that answer the query best, at most `limit`, with scores of at least `floor`.

    how: what finds them; a vector says of those that words have found how near they are.
    """
    depth = max(_DEPTH, 4 * limit)
    coverages = dict(_by_words(tables, owner, query.text, depth)) if how != "vectors" else {}
    cosines: dict[int, float] = {}
    places = {"words": _places(coverages), "vectors": {}}
    if nearest is not None and query.vector is not None:
        if how != "words":
            cosines = dict(nearest.search(query.vector[None], depth)[0])
            places["vectors"] = _places(cosines)
        cosines |= nearest.cosines(query.vector, [number for number in coverages if number not in cosines])
    numbers = list(coverages | cosines)
    entries = tables.entries(numbers, alive)
    found: list[Found] = []
    for number in numbers:
        entry = entries.get(number)
        if entry is None or entry.user != owner:
            continue
        parts = {
            name: values[number] for name, values in (("coverage", coverages), ("cosine", cosines)) if number in values
        }
        if how == "vectors":
            scored = score_of_cosine(cosines[number], query.trust, ALONE)
        else:
            scored = score(coverages.get(number, 0.0), cosines.get(number), query.trust)
        if scored >= floor:
            ranks = {part: by[number] for part, by in places.items() if number in by}
            found.append(Found(entry, scored, ranks, parts))
    # Equals stay in the order of the words' list, and after that of the vectors'.
    return sorted(found, key=lambda one: -one.score)[:limit]


def _places(found: Iterable[int]) -> dict[int, int]:
    return {number: place for place, number in enumerate(found, 1)}


def _by_words(tables: Tables, owner: str, text: str, limit: int) -> list[tuple[int, float]]:
    """The ids that have most of the query's words, and the share that each has, by weight."""
    count, length = tables.words.totals(owner)
    terms = sorted(set(terms_of(text)))
    if not count or not terms:
        return []
    frequencies = tables.words.frequencies(owner, terms)
    weights = {term: _weight(count, frequencies.get(term, 0)) for term in terms}
    rarest = sorted(frequencies, key=lambda term: (-weights[term], term))[:_MOST_TERMS]
    if not rarest:
        return []
    unknown = {term: _ACROSS for term in terms if term not in frequencies and is_pair(term)}
    shares = {term: weight**_SHARE * unknown.get(term, 1.0) for term, weight in weights.items()}
    total = sum(shares.values())
    few = _looked_for([(frequencies[term], shares[term] / total) for term in rarest])
    rare, frequent = ({term: (weights[term], shares[term]) for term in some} for some in (rarest[:few], rarest[few:]))
    ranked = tables.words.ranked(owner, rare, length / count, max(_REORDERED, limit))
    if frequent and ranked:
        sums = {number: (by_bm25, matched) for number, by_bm25, matched in ranked}
        for number, *more in tables.words.scores(owner, frequent, length / count, list(sums)):
            sums[number] = sums[number][0] + more[0], sums[number][1] + more[1]
        ranked = sorted(((number, *both) for number, both in sums.items()), key=lambda one: (-one[1], one[0]))
    found = {number: matched / total for number, _, matched in ranked}
    by_share = sorted(found, key=lambda number: -found[number])  # equals stay in BM25's order
    fused = fuse({"bm25": list(found), "share": by_share}, {"bm25": 1.0, "share": _SHARES_COUNT})
    return [(number, found[number]) for number in fused[:limit]]


def _looked_for(terms: Sequence[tuple[int, float]]) -> int:
    """How many of a query's rarest terms entries are looked for by; terms: of each, its entries and its share."""
    postings, left = 0, sum(share for _, share in terms)
    for place, (entries, share) in enumerate(terms):
        postings += entries
        if place >= _FEWEST_TERMS and postings > (_CHEAP_POSTINGS if left <= _LITTLE else _MOST_POSTINGS):
            return place
        left -= share
    return len(terms)


def _weight(count: int, frequency: int) -> float:
    """The weight of a term that stands in `frequency` of `count` entries (Robertson and Spärck Jones, 1976)."""
    return math.log(1 + (count + _OTHERS - frequency + 0.5) / (frequency + 0.5))

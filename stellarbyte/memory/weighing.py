"""Measures on a store's own entries how far its embedder's vectors can be trusted beside the words."""

import re

import numpy as np

from stellarbyte.memory.opening import Opened
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.searching import Query, search
from stellarbyte.memory.tables import Alive
from stellarbyte.memory.words import content_of

# The entries that are looked for, and the fewest that tell anything.
_SAMPLE, _FEWEST = 48, 16
# Of a store too small to measure: vectors say half as much as words.
_UNMEASURED = 0.5
# A search that finds the entry at this place or behind it counts 0.
_DEPTH = 20


def weight_of_vectors(store: Opened, embedder: Embedder, owner: str) -> float:
    """The weight of vectors in a user's searches, from 0 to 1, beside words of weight 1.

    Each of a sample of entries is looked for by half of its words. The weight is the square of the mean reciprocal rank
    by vectors over that by words: the queries are kinder to vectors than people's are. It is kept in the store, and
    measured anew when there are twice or half as many entries.
    """
    entries, _ = store.tables.words.totals(owner)
    kept = store.tables.words.vector_weight(owner)
    if kept is not None and kept[1] // 2 <= entries <= 2 * kept[1]:
        return kept[0]
    weight = _measured(store, embedder, owner) if entries >= _FEWEST else _UNMEASURED
    if not store.connection.read_only:
        with store.connection.writing():
            store.tables.words.set_vector_weight(owner, weight, entries)
    return weight


def _measured(store: Opened, embedder: Embedder, owner: str) -> float:
    alive = Alive(0.0, -1.0)  # what has expired is as good as any other here
    sampled = store.tables.sampled(owner, _SAMPLE)
    random = np.random.default_rng(18)
    halves = {entry.id: half for entry in sampled if (half := _half(entry.text, random))}
    if len(halves) < _FEWEST:
        return _UNMEASURED
    vectors = embedder.embed(list(halves.values()), queries=True)
    ranks: dict[str, float] = {"words": 0.0, "vectors": 0.0}
    for (number, half), vector in zip(halves.items(), vectors, strict=True):
        found = search(store.tables, store.nearest, owner, Query(half, vector), "hybrid", 4 * _DEPTH, 0.0, alive)
        places = next((one.ranks for one in found if one.entry.id == number), {})
        for part in ranks:
            place = places.get(part, _DEPTH)
            ranks[part] += 1 / place if place < _DEPTH else 0.0
    return min(1.0, ranks["vectors"] / ranks["words"]) ** 2 if ranks["words"] else 1.0


def _half(text: str, random: np.random.Generator) -> str:
    """Half of a text's words in their order; of Chinese a part without a break. Empty: the text is too short."""
    words = text.split()
    if len(words) >= 4:
        kept = sorted(random.choice(len(words), len(words) // 2, replace=False))
        return " ".join(words[place] for place in kept)
    signs = re.sub(r"\s", "", text)
    if len(content_of(text)) < 4 or len(signs) < 6:
        return ""
    first = int(random.integers(0, len(signs) - len(signs) // 2))
    return signs[first : first + len(signs) // 2]

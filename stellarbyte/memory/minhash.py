"""Finds pairs of texts that share many words among very many texts, by MinHash (Broder 1997) in bands."""

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

import numpy as np

from stellarbyte.memory.words import content_of

# Two texts of Jaccard similarity s share a band with probability 1 - (1 - s^4)^16: 0.66 at 0.5, 0.9999 at 0.8.
_BANDS, _ROWS = 16, 4
_PRIME = (1 << 61) - 1
# More texts than that in one band are all alike: their neighbours in it are pairs enough.
_CROWD = 50


def similar_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of places whose texts are likely to be similar, each once and in order."""
    bands: defaultdict[bytes, list[int]] = defaultdict(list)
    for place, text in enumerate(texts):
        words = content_of(text)
        if words:
            signature = _signature(words).reshape(_BANDS, _ROWS)
            for band, row in enumerate(signature):
                bands[bytes([band]) + row.tobytes()].append(place)
    pairs = set[tuple[int, int]]()
    for places in bands.values():
        pairs.update(combinations(places, 2) if len(places) <= _CROWD else pairwise(places))
    yield from sorted(pairs)


def _signature(words: Sequence[str]) -> np.ndarray:
    hashes = np.array([zlib.crc32(word.encode()) for word in set(words)], np.uint64)
    return np.array([((hashes * a + b) % _PRIME).min() for a, b in _FUNCTIONS], np.uint64)


# The products stay below 2^64: hashes and factors have 32 bits each.
_FUNCTIONS = np.random.default_rng(18).integers(1, 1 << 31, (_BANDS * _ROWS, 2), np.uint64)

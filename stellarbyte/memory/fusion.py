"""Joins the lists of several searches by the places that they give an entry."""

from collections.abc import Mapping, Sequence

# Reciprocal rank fusion: Cormack, Clarke and Büttcher (SIGIR 2009).
K = 60


def fuse(lists: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> list[int]:
    """Ids, the best first, by the weighed sum of 1 / (60 + place) over the lists; equals by their numbers."""
    sums: dict[int, float] = {}
    for part, ids in lists.items():
        for place, number in enumerate(ids, 1):
            sums[number] = sums.get(number, 0.0) + weights[part] / (K + place)
    return sorted(sums, key=lambda number: (-sums[number], number))

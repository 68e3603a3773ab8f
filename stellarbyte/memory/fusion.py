"""Joins the lists of several searches by the places that they give an entry."""

from collections.abc import Mapping, Sequence

# Reciprocal rank fusion: Cormack, Clarke and Büttcher (SIGIR 2009).
K = 60


def fuse(lists: Mapping[str, Sequence[int]], weights: Mapping[str, float]) -> list[tuple[int, float, dict[str, int]]]:
    """Ids, the best first, each with the weighed sum of 1 / (60 + place) and its place in each list, from 1."""
    places: dict[int, dict[str, int]] = {}
    for part, ids in lists.items():
        for place, number in enumerate(ids, 1):
            places.setdefault(number, {})[part] = place
    fused = [
        (number, sum(weights[part] / (K + place) for part, place in by.items()), by) for number, by in places.items()
    ]
    return sorted(fused, key=lambda found: (-found[1], found[0]))

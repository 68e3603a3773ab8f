"""Mixes rows of several sources by weights: says of each row of the training order which source it comes from."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple


@dataclass(frozen=True)
class Segment:
    """Rows of the training order that are mixed by the same weights: those from number `first` to the next segment.

    weights: one positive number for each source; only their ratios count.
    """

    first: int
    weights: tuple[float, ...]

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of each source in the rows; they add up to 1."""
        total = sum(map(Fraction, self.weights))
        return tuple(float(Fraction(weight) / total) for weight in self.weights)

    @cached_property
    def tree(self) -> "_Tree":
        """The order in which sources follow each other."""
        return _tree(self.weights)


class _Node(NamedTuple):
    """Of m rows that come here, round(m · share) are of `left`, and the others of `right`; share = above / below."""

    above: int
    below: int
    left: "_Tree"
    right: "_Tree"

    def lefts(self, rows: int) -> int:
        return (2 * rows * self.above + self.below) // (2 * self.below)


_Tree = _Node | int  # a leaf is the number of a source


def _tree(weights: Sequence[float]) -> _Tree:
    """Huffman's tree: the two lightest are joined until one is left, so that heavy sources are near the root."""
    heap: list[tuple[Fraction, int, _Tree]] = [(Fraction(weight), i, i) for i, weight in enumerate(weights)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (light, second, right), (heavy, first, left) = heapq.heappop(heap), heapq.heappop(heap)
        share = heavy / (light + heavy)
        node = _Node(share.numerator, share.denominator, left, right)
        heapq.heappush(heap, (light + heavy, min(first, second), node))  # no two have the same number
    return heap[0][2]


class Mixture:
    """The source of each row in an endless order of rows, as a pure function of the row's number.

    In each beginning of a segment a source has its share of the rows, give or take less than two rows (less than one
    row if there are at most three sources). The weights may change from one segment to the next. A source then goes on
    with its next row, so that none of its rows comes twice before all have come.

    Time is the depth of the tree of sources, and memory is the tree: neither depends on the number of rows.
    """

    def __init__(self, segments: Sequence[Segment]) -> None:
        assert segments and segments[0].first == 0, segments
        assert all(a.first < b.first and len(a.weights) == len(b.weights) for a, b in pairwise(segments)), segments
        self.segments = tuple(segments)
        self._before = [(0,) * len(segments[0].weights)]  # rows of each source before each segment
        for segment, following in pairwise(self.segments):
            self._before.append(self._sum(self._before[-1], segment, following.first))

    def place(self, row: int) -> tuple[int, int]:
        """(the source of a row of the order, the number of rows of this source before it)."""
        number = self._segment(row)
        segment = self.segments[number]
        rest, tree = row - segment.first, segment.tree
        while isinstance(tree, _Node):
            lefts = tree.lefts(rest)
            is_left = tree.lefts(rest + 1) > lefts
            rest, tree = (lefts, tree.left) if is_left else (rest - lefts, tree.right)
        return tree, self._before[number][tree] + rest

    def counts(self, rows: int) -> tuple[int, ...]:
        """The number of rows of each source among the first `rows` of the order."""
        number = self._segment(max(rows - 1, 0))
        return self._sum(self._before[number], self.segments[number], rows)

    def _segment(self, row: int) -> int:
        assert row >= 0, row
        return max(number for number, segment in enumerate(self.segments) if segment.first <= row)

    @staticmethod
    def _sum(before: Sequence[int], segment: Segment, stop: int) -> tuple[int, ...]:
        counts = list(before)
        waiting: list[tuple[_Tree, int]] = [(segment.tree, stop - segment.first)]
        while waiting:
            tree, rows = waiting.pop()
            if isinstance(tree, _Node):
                lefts = tree.lefts(rows)
                waiting += [(tree.left, lefts), (tree.right, rows - lefts)]
            else:
                counts[tree] += rows
        return tuple(counts)

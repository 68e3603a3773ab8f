"""Puts rows of any lengths into batches of few shapes, and takes the scores out of them again."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from stellarbyte.evaluation.scorer import Scorer
from stellarbyte.labels import IGNORED_LABEL

# So many batches are put together at a time, so that rows of about one length come into one.
_BATCHES_AHEAD = 16
# The lengths of batches begin here, and each is about 1.4 times the one before: JAX compiles a program for each.
_SHORTEST = 32

Key = TypeVar("Key")


class Row(NamedTuple):
    """Token ids, of which the last `scored` are to be scored, each behind all before it."""

    ids: np.ndarray
    scored: int

    def fill(self, ids_T: np.ndarray, labels_T: np.ndarray) -> int:
        """Writes what is read, and the labels of what is scored; returns how many tokens are read."""
        T = len(self.ids) - 1
        ids_T[:T] = self.ids[:-1]
        labels_T[T - self.scored : T] = self.ids[len(self.ids) - self.scored :]
        return T


class RowScores(NamedTuple):
    """What a model thinks of the scored tokens of a row, in their order; see TokenScores."""

    log_p_N: np.ndarray
    top_N: np.ndarray
    hit_N: np.ndarray


def score_rows(scorer: Scorer, rows: Iterable[tuple[Key, Row]], batch_tokens: int) -> Iterator[tuple[Key, RowScores]]:
    """Scores rows; those of about one length are read together, so they come in another order.

    batch_tokens: the tokens that the model reads at once, where they are more than those of a row.
    """
    waiting: list[tuple[Key, Row]] = []
    tokens = 0
    for key, row in rows:
        waiting.append((key, row))
        tokens += len(row.ids)
        if tokens >= _BATCHES_AHEAD * batch_tokens:
            yield from _score_all(scorer, waiting, batch_tokens)
            waiting, tokens = [], 0
    yield from _score_all(scorer, waiting, batch_tokens)


def _score_all(scorer: Scorer, waiting: list[tuple[Key, Row]], batch_tokens: int) -> Iterator[tuple[Key, RowScores]]:
    by_length: dict[int, list[tuple[Key, Row]]] = {}
    for key, row in waiting:
        by_length.setdefault(_room(len(row.ids) - 1, scorer.positions), []).append((key, row))
    for length, some in sorted(by_length.items(), reverse=True):  # what takes most memory comes first
        count = max(1, batch_tokens // length)
        for start in range(0, len(some), count):
            yield from _score_batch(scorer, some[start : start + count], length)


def _score_batch(scorer: Scorer, some: list[tuple[Key, Row]], length: int) -> Iterator[tuple[Key, RowScores]]:
    count = 1 << (len(some) - 1).bit_length()  # few numbers of rows, too; those that are added score nothing
    ids_BT = np.zeros((count, length), np.int32)
    labels_BT = np.full((count, length), IGNORED_LABEL, np.int32)
    lengths_B = np.ones(count, np.int64)
    for place, (_, row) in enumerate(some):
        lengths_B[place] = row.fill(ids_BT[place], labels_BT[place])
    scores = scorer.score(ids_BT, labels_BT, lengths_B)
    for place, (key, row) in enumerate(some):
        T = lengths_B[place]
        yield key, RowScores(*(array_BT[place, T - row.scored : T] for array_BT in scores))


def _room(length: int, most: int) -> int:
    """The length of the batch for a row: 32, 48, 64, 96, 128 … or the most that the model can read."""
    room = _SHORTEST
    while room < length:
        room = room * 3 // 2 if room & (room - 1) == 0 else room // 3 * 4
    return max(length, min(room, most))

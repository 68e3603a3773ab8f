"""Makes the facts on attention of the weights of one layer after the other."""

from collections.abc import Sequence

import numpy as np

from stellarbyte.report.measurements import AttentionFacts, AttentionPattern

# The most tokens whose attention is measured, and of these the first that are drawn.
TOKENS, DRAWN = 256, 48

# Why a head is drawn, the figure that decides, and whether its largest value does. A head is drawn once.
_CHOICES = (
    ("first", "first_token", True),
    ("nearest", "distance", False),
    ("farthest", "distance", True),
    ("narrowest", "entropy", False),
    ("widest", "entropy", True),
)

_Row = tuple[float | None, ...]


class AttentionSums:
    """Takes the layers' attention in order. heads: the number of a layer's heads before any was pruned."""

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._rows: dict[str, list[_Row]] = {"entropy": [], "distance": [], "first_token": []}
        self._drawn: list[dict[int, np.ndarray]] = []
        self._read = 0

    def add(self, weights_NTS: np.ndarray, numbers: Sequence[int] | None = None) -> None:
        """Adds the next layer's weights [N, T, T]. numbers: those of its heads, if some are pruned."""
        weights_NTS = np.asarray(weights_NTS, np.float32)
        N, T, _ = weights_NTS.shape
        self._read = T
        distance_TS = np.maximum(np.arange(T)[:, None] - np.arange(T), 0)
        logs_NTS = np.log(np.maximum(weights_NTS, np.finfo(np.float32).tiny))
        behind = slice(1, None) if T > 1 else slice(None)  # the first query sees itself alone
        figures = {
            "entropy": -(weights_NTS * logs_NTS).sum(axis=-1),
            "distance": (weights_NTS * distance_TS).sum(axis=-1),
            "first_token": weights_NTS[:, :, 0],
        }
        places = range(N) if numbers is None else numbers
        for name, values_NT in figures.items():
            row: list[float | None] = [None] * self._heads
            for head, value in zip(places, values_NT[:, behind].mean(axis=1, dtype=np.float64), strict=True):
                row[head] = float(value)
            self._rows[name].append(tuple(row))
        shown_NTS = weights_NTS[:, :DRAWN, :DRAWN].astype(np.float16)
        self._drawn.append(dict(zip(places, shown_NTS, strict=True)))

    def facts(self, texts: Sequence[str]) -> AttentionFacts:
        """The facts, once all layers are there. texts: the tokens that were read, as text."""
        return AttentionFacts(
            tokens=tuple(texts[:DRAWN]),
            patterns=tuple(self._patterns()),
            read=self._read,
            **{name: tuple(rows) for name, rows in self._rows.items()},
        )

    def _patterns(self) -> list[AttentionPattern]:
        found: dict[tuple[int, int], AttentionPattern] = {}
        for reason, name, largest in _CHOICES:
            there = {
                (layer, head): value
                for layer, row in enumerate(self._rows[name])
                for head, value in enumerate(row)
                if value is not None and np.isfinite(value)
            }
            if not there:
                continue
            layer, head = (max if largest else min)(there, key=lambda place: there[place])
            weights = tuple(tuple(round(float(w), 3) for w in row) for row in self._drawn[layer][head])
            found.setdefault((layer, head), AttentionPattern(layer, head, weights, reason))
        return list(found.values())

"""A model of bytes whose opinion can be worked out by hand."""

from typing import Any

import numpy as np

from stellarbyte.evaluation.scorer import Encoded, TokenScores


class ByteScorer:
    """Each byte is a token. `log_p(before, label)` is what it thinks of a label that stands behind so many tokens.

    It remembers the shapes that it was given, and sees in `context` how many tokens stood before each label.
    """

    name, begin = "bytes", 256

    def __init__(self, positions: int = 8, worse: float = 0.0, step: int = 1) -> None:
        self.positions, self._worse, self._step = positions, worse, step
        self.facts: dict[str, Any] = {"model": self.name, "kind": "run", "step": 3, "dtype": "float32"}
        self.shapes: list[tuple[int, ...]] = []
        self.context: list[int] = []

    def encode(self, text: str) -> Encoded:
        data = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        return Encoded(data[:: self._step], np.arange(0, len(data), self._step))

    def score(self, ids_BT: np.ndarray, labels_BT: np.ndarray, lengths_B: np.ndarray) -> TokenScores:
        self.shapes.append(ids_BT.shape)
        before_BT = np.broadcast_to(np.arange(1, ids_BT.shape[1] + 1), ids_BT.shape)
        scored_BT = labels_BT >= 0
        assert (before_BT <= lengths_B[:, None])[scored_BT].all()
        self.context += before_BT[scored_BT].tolist()
        log_p_BT = -1.0 / before_BT - labels_BT / 256 - self._worse
        return TokenScores(log_p_BT, np.log(np.full(ids_BT.shape, 0.7)), labels_BT % 2 == 0)

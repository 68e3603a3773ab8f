"""A language model as a memory uses it: its states on a text, and its loss."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

# A longer text is read in windows: a mean says little about thousands of tokens, and memory stays small.
_WINDOW = 512

MIDDLE_SHARE = 0.5
"""The length that a token's state after the middle layer is given, beside 1 for its embedding, which varies less."""


class Reader(ABC):
    """A model that reads texts. A wing says how tokens become states and losses.

    Args:
        name: the model's name, for people.
        hash: a sha256 over what decides the states: the weights and the layer.
        layer: the number of layers after which the middle states are taken.
        size: the number of channels of a state.
        context: the largest number of tokens that the model reads at once.
        begin: the token before every text; None if the model has none.
    """

    def __init__(self, name: str, hash: str, layer: int, size: int, context: int, begin: int | None) -> None:
        self.name, self.hash, self.layer, self.size = name, hash, layer, size
        self.window = max(2, min(context, _WINDOW))
        self.begin = [] if begin is None else [begin]

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without those that a tokenizer puts around it; special tokens in it stay text."""

    @abstractmethod
    def sums(self, rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]) -> np.ndarray:
        """The sum of a row's states, each times its weight: float32 [rows, size].

        A token's state is its embedding at length 1, plus its hidden state after the middle layer at MIDDLE_SHARE.
        """

    @abstractmethod
    def loss(self, row: Sequence[int], first: int) -> float:
        """The mean loss of a row's tokens from index `first` (at least 1) on, each given all before it, in nats."""


def middle(layers: int) -> int:
    """The number of layers after which a model of `layers` layers has its middle states."""
    return max(1, layers // 2)

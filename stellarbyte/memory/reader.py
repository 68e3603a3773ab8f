"""A language model as a memory uses it: the states of its middle layer, and its loss on a text."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

# A longer text is read in windows: one layer's mean says little about thousands of tokens, and memory stays small.
_WINDOW = 512


class Reader(ABC):
    """A model that reads texts. A wing says how tokens become states and losses.

    Args:
        name: the model's name, for people.
        hash: a sha256 over what decides the states: the weights and the layer.
        layer: the number of layers after which the states are taken.
        size: the number of channels of a state.
        context: the largest number of tokens that the model reads at once.
        begin: the token before every text; None if the model has none. Its state says nothing about the text.
    """

    def __init__(self, name: str, hash: str, layer: int, size: int, context: int, begin: int | None) -> None:
        self.name, self.hash, self.layer, self.size = name, hash, layer, size
        self.window = max(2, min(context, _WINDOW))
        self.begin = [] if begin is None else [begin]

    @abstractmethod
    def tokens(self, text: str) -> list[int]:
        """The tokens of a text, without those that a tokenizer puts around it; special tokens in it stay text."""

    @abstractmethod
    def sums(self, rows: Sequence[Sequence[int]], skipped: int) -> np.ndarray:
        """The sum of a row's states after the middle layer, without its first `skipped`: float32 [rows, size]."""

    @abstractmethod
    def loss(self, row: Sequence[int], first: int) -> float:
        """The mean loss of a row's tokens from index `first` (at least 1) on, each given all before it, in nats."""


def middle(layers: int) -> int:
    """The number of layers after which a model of `layers` layers has its middle states."""
    return max(1, layers // 2)

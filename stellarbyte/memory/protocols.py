"""What a memory asks of the models that stand behind it: vectors of texts, and how surprising a text is."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Embedder(Protocol):
    """Makes vectors of texts.

    Attributes:
        name: what a user calls it, such as its folder.
        hash: a hash of everything that decides the vectors: weights and settings.
        size: the length of a vector.
        whitened: whether a memory whitens the vectors, which are only centred otherwise. A language model's states
            share directions that say nothing of a text; whoever was trained to be compared by cosines loses by it.
    """

    name: str
    hash: str
    size: int
    whitened: bool

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """The vectors, (len(texts), size) in float32, neither whitened nor normalised.

        queries: whether the texts are what is looked for; some embedders read these with a prompt of their own.
        """


class Judge(Protocol):
    """Tells how surprising a text is to a model.

    Attributes:
        hash: a hash of everything that decides the losses; those of different judges are not compared.
    """

    hash: str

    def loss(self, text: str, given: str) -> float:
        """The mean loss of the text's tokens after `given`, in nats."""

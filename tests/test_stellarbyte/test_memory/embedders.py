"""An embedder that needs no model: texts that share three letters in a row are near."""

import zlib
from collections.abc import Sequence

import numpy as np


class Letters:
    """Counts of hashed trigrams."""

    whitened = True

    def __init__(self, size: int = 64, name: str = "letters") -> None:
        self.name, self.hash, self.size = name, f"{name}-{size}", size

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:  # noqa: ARG002
        """The vectors, (len(texts), size)."""
        vectors = np.zeros((len(texts), self.size), np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for first in range(len(text) - 2):
                row[zlib.crc32(text[first : first + 3].lower().encode()) % self.size] += 1
        return vectors

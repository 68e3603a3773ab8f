"""The figures of a text under a model: what is summed up, and what comes of the sums."""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stellarbyte.figures import perplexity

# As many bins of equal width as Guo et al. use.
BINS = 15


@dataclass
class Figures:
    """Sums over the scored tokens of some documents, and what comes of them.

    documents, tokens, words, bytes: how many there are. nats: the loss of the whole text. hits: tokens that the model
    thinks likeliest. By bin of the probability of the likeliest token, [bins]: tokens_M, their confidence_M (the sum of
    those probabilities) and their hits_M.
    """

    documents: int = 0
    tokens: int = 0
    words: int = 0
    bytes: int = 0
    nats: float = 0.0
    hits: int = 0
    tokens_M: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    confidence_M: np.ndarray = field(default_factory=lambda: np.zeros(BINS))
    hits_M: np.ndarray = field(default_factory=lambda: np.zeros(BINS))

    def add_text(self, text: str, bytes: int) -> None:
        """Counts a document. Its words are what white space separates, as lm-eval counts them."""
        self.documents += 1
        self.words += len(re.split(r"\s+", text))
        self.bytes += bytes

    def add_tokens(self, log_p_N: np.ndarray, top_N: np.ndarray, hit_N: np.ndarray) -> None:
        """Adds what a model says of some tokens; see TokenScores."""
        bins, top_p_N = len(self.tokens_M), np.exp(np.minimum(top_N.astype(np.float64), 0.0))
        # A bin holds its upper bound, as in Guo et al.; 0 is in the first.
        bin_N = np.clip(np.ceil(top_p_N * bins).astype(np.int64) - 1, 0, bins - 1)
        self.tokens += len(log_p_N)
        self.nats -= float(log_p_N.sum(dtype=np.float64))
        self.hits += int(hit_N.sum())
        self.tokens_M += np.bincount(bin_N, minlength=bins)
        self.confidence_M += np.bincount(bin_N, top_p_N, bins)
        self.hits_M += np.bincount(bin_N, hit_N, bins)

    def __add__(self, other: "Figures") -> "Figures":
        return Figures(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def loss(self) -> float:
        """Nats a token."""
        return self.nats / max(1, self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Loss of the whole text in bits over its length in bytes, by which tokenizers can be compared."""
        return self.nats / math.log(2) / self.bytes

    @property
    def calibration_error(self) -> float:
        """The expected calibration error: |share of hits - mean confidence| of the bins, weighted by their tokens.

        Guo et al. 2017, arXiv:1706.04599, equation 3.
        """
        return float(np.abs(self.hits_M - self.confidence_M).sum() / max(1, self.tokens))

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the figures, what was counted, and the bins of the calibration."""
        counted = {name: getattr(self, name) for name in ("documents", "tokens", "words", "bytes")}
        edges = np.linspace(0.0, 1.0, len(self.tokens_M) + 1)
        bins = [
            {
                "from": round(float(low), 6),
                "to": round(float(high), 6),
                "tokens": int(tokens),
                "confidence": float(confidence / tokens) if tokens else None,
                "accuracy": float(hits / tokens) if tokens else None,
            }
            for low, high, tokens, confidence, hits in zip(
                edges[:-1], edges[1:], self.tokens_M, self.confidence_M, self.hits_M, strict=True
            )
        ]
        return {
            "loss": self.loss,
            "perplexity": perplexity(self.loss),
            "word_perplexity": perplexity(self.nats / self.words),
            "byte_perplexity": perplexity(self.nats / self.bytes),
            "bits_per_byte": self.bits_per_byte,
            "accuracy": self.hits / max(1, self.tokens),
            "calibration_error": self.calibration_error,
            **counted,
            "calibration_bins": bins,
        }

"""Keeps the keys that got most attention so far (H2O: Zhang et al. 2023, arXiv:2306.14048)."""

from dataclasses import dataclass
from typing import ClassVar

from stellarbyte.kv_cache.evidence import Array, Evidence


@dataclass(frozen=True)
class Heavy:
    """Scores by accumulated attention."""

    name: ClassVar[str] = "heavy"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})

    def scores(self, evidence: Evidence) -> Array:
        """The attention that each key has got: float32 [B, K, S]."""
        return evidence.attention_BKS

"""Keeps the newest tokens and the first few (Xiao et al. 2023, arXiv:2309.17453)."""

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from stellarbyte.kv_cache.evidence import Array, Evidence


@dataclass(frozen=True)
class Window:
    """Scores by recency alone; selection.py keeps the first tokens for every policy."""

    name: ClassVar[str] = "window"
    needs: ClassVar[frozenset[str]] = frozenset()

    def scores(self, evidence: Evidence) -> Array:
        """The number of each key's token: float32 [B, K, S]."""
        xp = array_namespace(evidence.index_BKS)
        return xp.astype(evidence.index_BKS, xp.float32)

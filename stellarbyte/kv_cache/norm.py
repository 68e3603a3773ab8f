"""Keeps the shortest keys, which later queries attend to most (Devoto et al. 2024, arXiv:2406.11430)."""

from dataclasses import dataclass
from typing import ClassVar

from array_api_compat import array_namespace

from stellarbyte.kv_cache.evidence import Array, Evidence


@dataclass(frozen=True)
class Norm:
    """Scores by the key's norm without XPos's factor, which would make keys longer or shorter with their position."""

    name: ClassVar[str] = "norm"
    needs: ClassVar[frozenset[str]] = frozenset()

    def scores(self, evidence: Evidence) -> Array:
        """The norm of each key before it was turned, negated: float32 [B, K, S]."""
        xp = array_namespace(evidence.keys_BKSH)
        keys_BKSH = evidence.keys_BKSH
        if evidence.rotation is not None:
            factor = evidence.rotation(evidence.index_BKS + evidence.offset_B[:, None, None]).key_factor
            keys_BKSH = keys_BKSH / xp.concat([factor, factor], axis=-1)
        return -xp.sqrt(xp.sum(keys_BKSH * keys_BKSH, axis=-1))

"""What a policy is: a name, what it needs to know, and a score for each key."""

from typing import ClassVar, Protocol

from stellarbyte.kv_cache.evidence import Array, Evidence

NEEDS = frozenset({"attention", "queries", "query_moments"})


class Policy(Protocol):
    """Scores keys by importance. An instance is immutable and hashable: a frozen dataclass.

    name: what `--kv-policy` calls it. needs: those of NEEDS that its scores are made of; a cache collects no others.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]

    def scores(self, evidence: Evidence) -> Array:
        """float32 [B, K, S], higher for more important keys. Scores of slots without a key are ignored."""
        ...

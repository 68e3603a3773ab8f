"""What a decoder asks of a cache of keys and values, whichever it is: kv_cache.py's or pruned_cache.py's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import jax

from stellarbyte.kv_cache.evidence import Rotation


@dataclass(frozen=True)
class NewTokens:
    """What one layer computes of the tokens of a call.

    unturned_BKGTH: the queries before they were turned, scaled like q_BKGTH by 1 / sqrt(H).
    position_ids_BT: their positions; B may be 1.
    rotation: a function from positions to what turns queries and keys there; None without rotary positions.
    """

    q_BKGTH: jax.Array
    k_BKTH: jax.Array
    v_BKTH: jax.Array
    unturned_BKGTH: jax.Array
    position_ids_BT: jax.Array | None
    rotation: Callable[[jax.Array], Rotation] | None


class CacheView(Protocol):
    """How the new tokens of a call use a cache; all layers share it. fresh: the cache is empty."""

    @property
    def fresh(self) -> bool: ...  # noqa: D102


class LayerCache(Protocol):
    """The keys and values of one layer. It is immutable, as the whole cache is."""

    def take(self, tokens: NewTokens, view: Any) -> Self:
        """The cache with the tokens of a first call, which see only one another."""
        ...

    def attend(self, tokens: NewTokens, view: Any) -> tuple[jax.Array, Self]:
        """The attention of the new tokens to the cache and to themselves, [B, K, G, T, H], and the cache with them."""
        ...


class Cache(Protocol):
    """The keys and values of all layers."""

    @property
    def layers(self) -> tuple[Any, ...]: ...  # noqa: D102

    @property
    def lengths(self) -> jax.Array:
        """The number of tokens that each row has read, int32 [B]."""
        ...

    def next_positions(self, count: int) -> jax.Array:
        """The positions of the next `count` tokens: int32 [B, count]."""
        ...

    def view(self, count: int, segment_ids_BT: jax.Array | None) -> CacheView:
        """The view for `count` new tokens of each row; by default all of them are of segment 1."""
        ...

    def advanced(self, layers: tuple[Any, ...], view: Any) -> Self:
        """The cache after every layer has stored the tokens of `view`."""
        ...

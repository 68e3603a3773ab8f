"""What a call of the decoder hands to its layers beside the hidden states."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from stellarbyte.kv_cache.evidence import Rotation
from stellarbyte_jax.model.caches import CacheView, LayerCache
from stellarbyte_jax.model.rope import RotaryTables
from stellarbyte_jax.model.taps import Taps


@dataclass(frozen=True)
class CallContext:
    """The values that all layers share. `training` turns on expert capacity, which evaluation does not use.

    position_ids_BT and rotation are what a pruned cache has to know: see NewTokens.
    """

    tables: RotaryTables | None
    segment_ids_BT: jax.Array | None
    cache_view: CacheView | None
    training: bool
    position_ids_BT: jax.Array | None = None
    rotation: Callable[[jax.Array], Rotation] | None = None

    def real(self, x_BTD: jax.Array) -> jax.Array:
        """Which tokens are no padding, float32 [B, T]."""
        if self.segment_ids_BT is None:
            return jnp.ones(x_BTD.shape[:2], jnp.float32)
        return (self.segment_ids_BT != 0).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerContext:
    """What one layer gets for itself; stacked values have a leading axis L, which is scanned over.

    dropout_key: the key that dropout draws from; None drops nothing.
    head_gates_BTN: factors of the heads' outputs, for heads that are pruned; B and T are 1. taps: what is measured.
    """

    drop_path_rate: jax.Array | None
    dropout_key: jax.Array | None
    head_gates_BTN: jax.Array | None
    cache: LayerCache | None = None
    taps: Taps | None = None

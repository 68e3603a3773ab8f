"""What a call of the decoder hands to its layers beside the hidden states."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from stellarbyte.kv_cache.evidence import Rotation
from stellarbyte_jax.model.caches import CacheView, LayerCache
from stellarbyte_jax.model.rope import RotaryTables


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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerContext:
    """What one layer gets for itself; stacked values have a leading axis L, which is scanned over.

    dropout_key: the key that dropout draws from; None drops nothing.
    head_gates_BTN: factors of the heads' outputs; B and T may be 1.
    """

    drop_path_rate: jax.Array | None
    dropout_key: jax.Array | None
    head_gates_BTN: jax.Array | None
    cache: LayerCache | None = None

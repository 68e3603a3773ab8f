"""What a call hands to its layers beside the hidden states."""

from dataclasses import dataclass

import jax

from stellarbyte_jax.model.kv_cache import CacheView, LayerCache
from stellarbyte_jax.model.rope import RotaryTables


@dataclass(frozen=True)
class CallContext:
    """The same for all layers. `training` turns on what is not done in evaluation: dropping and expert capacity."""

    tables: RotaryTables | None
    segment_ids_BT: jax.Array | None
    cache_view: CacheView | None
    training: bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerContext:
    """One layer's own; stacked, the leading axis L is scanned over.

    `dropout_key` is None where nothing is dropped. `head_gates_BTN` (B and T may be 1) multiply the heads' outputs.
    """

    drop_path_rate: jax.Array | None
    dropout_key: jax.Array | None
    head_gates_BTN: jax.Array | None
    cache: LayerCache | None = None

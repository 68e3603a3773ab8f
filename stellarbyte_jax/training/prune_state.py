"""What a run that prunes while it trains remembers from step to step."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.prune_config import PruneConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PruneState:
    """Of each kind that is pruned, "channels" or "heads": the units' importance, and which of them are kept.

    importance: float32 [L, units]. kept: bool [L, units].
    """

    importance: dict[str, jax.Array]
    kept: dict[str, jax.Array]


def kept_at_first(config: PruneConfig, model: ByteConfig) -> dict[str, np.ndarray]:
    """Kind -> bool [L, units]: what the model has before a run prunes it; not what was pruned earlier."""
    kept: dict[str, np.ndarray] = {}
    if config.keep_channels is not None:
        widths_L = np.array(model.intermediate_sizes)
        kept["channels"] = np.arange(widths_L.max()) < widths_L[:, None]
    if config.keep_heads is not None:
        gone = model.pruned_heads or ((),) * model.num_hidden_layers
        kept["heads"] = np.array([[head not in each for head in range(model.num_attention_heads)] for each in gone])
    return kept


def first_state(config: PruneConfig, model: ByteConfig) -> PruneState:
    """The state of a run before its first step."""
    kept = {kind: jnp.asarray(values) for kind, values in kept_at_first(config, model).items()}
    return PruneState({kind: jnp.zeros(values.shape, jnp.float32) for kind, values in kept.items()}, kept)

"""Measures on text how much a model needs each of its parts."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.architecture import ByteConfig
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte.pruning.scores import Statistics, added
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.taps import Taps
from stellarbyte_jax.training.loss import token_loss
from stellarbyte_jax.training.state import Params


def measure_importance(
    graphdef: nnx.GraphDef[ByteForCausalLM], params: Params, batches: Iterable[Mapping[str, Any]]
) -> Statistics:
    """The statistics that importance is computed from, over batches of training or of validation, without dropout."""
    config = nnx.merge(graphdef, params).config
    zeros = Taps.zeros(config)

    @jax.jit
    def sums(params: Params, batch: Mapping[str, jax.Array]) -> tuple[Taps, jax.Array]:
        model = nnx.merge(graphdef, params)

        def loss(taps: Taps) -> jax.Array:
            positions, segments = batch.get("position_ids"), batch.get("segment_ids")
            hidden = model.model(batch["input_ids"], positions, segments, taps=taps).hidden
            head, axes = model.head
            return token_loss(hidden, head, batch["labels"], axes).loss

        return jax.grad(loss)(zeros), jnp.sum(batch["labels"] != IGNORED_LABEL)

    weights = _weights(config, params)
    total: Statistics | None = None
    for batch in batches:
        found, tokens = jax.device_get(sums(params, {name: jnp.asarray(x) for name, x in batch.items()}))
        layers: dict[str, Any] = {
            name: np.asarray(getattr(found, name), np.float64) for name in Taps.__dataclass_fields__
        }
        total = added(total, Statistics(int(tokens), **layers, **weights))
    assert total is not None
    return total


def _weights(config: ByteConfig, params: Params) -> dict[str, Any]:
    """The sums of sizes of the weights that each head's channels and each inner channel go on with."""
    layers, H = params["model"]["layers"], config.head_dim or 0
    o_proj_LX = jnp.abs(layers["self_attn"]["o_proj"]["kernel"]).sum(axis=-1)
    heads_LNH = np.asarray(jax.device_get(o_proj_LX), np.float64).reshape(config.num_hidden_layers, -1, H)
    channels_LF = np.zeros((config.num_hidden_layers, 0))
    if not config.num_experts:
        channels_LF = np.asarray(jax.device_get(jnp.abs(layers["mlp"]["down_proj"]["kernel"]).sum(axis=-1)), np.float64)
    return {"head_weights": heads_LNH, "channel_weights": channels_LF}

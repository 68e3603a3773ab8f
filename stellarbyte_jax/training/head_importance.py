"""Measures how much the loss depends on each attention head."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.training.loss import token_loss
from stellarbyte_jax.training.state import Params


def head_importance(
    graphdef: nnx.GraphDef[ByteForCausalLM], params: Params, batches: Iterable[Mapping[str, Any]]
) -> np.ndarray:
    """Mean over all labelled tokens of |gradient · activation| of each head's output: float64 [L, N].

    The product is summed over a head's channels. To first order this is the change of the summed loss if the head gave
    0 at that token (Michel et al. 2019, arXiv:1905.10650). Batches of training and of validation both fit.
    """
    config = nnx.merge(graphdef, params).config
    L, N = config.num_hidden_layers, config.num_attention_heads

    @jax.jit
    def batch_scores(params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, params)

        def loss(gates_LBTN: jax.Array) -> jax.Array:
            output = model.model(
                batch["input_ids"], batch.get("position_ids"), batch.get("segment_ids"), head_gates=gates_LBTN
            )
            head, axes = model.head
            return token_loss(output.hidden, head, batch["labels"], axes).loss

        # A gate of 1 on a head's output has the gradient sum(gradient · output).
        gradient_LBTN = jax.grad(loss)(jnp.ones((L, *batch["input_ids"].shape, N)))
        labelled_BT1 = (batch["labels"] != IGNORED_LABEL)[..., None]
        return jnp.abs(gradient_LBTN * labelled_BT1).sum(axis=(1, 2)), labelled_BT1.sum()

    total_LN, tokens = np.zeros((L, N)), 0
    for batch in batches:
        scores_LN, count = jax.device_get(batch_scores(params, {name: jnp.asarray(x) for name, x in batch.items()}))
        total_LN, tokens = total_LN + scores_LN, tokens + int(count)
    return total_LN / max(tokens, 1)

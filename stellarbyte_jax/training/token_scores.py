"""What a model thinks of each label, where a loss only wants their sum."""

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.causal_lm import ByteForCausalLM

# The number of positions, over all rows, whose logits are in memory at the same time.
_POSITIONS = 2048


def token_scores(
    model: ByteForCausalLM, hidden_BTD: jax.Array, labels_BT: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """For each label, [B, T]: its log-probability, that of the likeliest token, and whether the two are one.

    Where a label is -100 they mean nothing. The logits are made a piece of the rows at a time; a mesh is left to XLA.
    """
    B, T, _ = hidden_BTD.shape
    size = max(1, min(T, _POSITIONS // B))
    count = -(-T // size)

    def piece(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        # The last piece begins earlier, where it is whole; what comes twice is left out below.
        start = jnp.minimum(index * size, T - size)
        hidden_BCD = jax.lax.dynamic_slice_in_dim(hidden_BTD, start, size, axis=1)
        labels_BC = jnp.maximum(jax.lax.dynamic_slice_in_dim(labels_BT, start, size, axis=1), 0)
        logits_BCV = model.logits(hidden_BCD)
        total_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
        label_BC = jnp.take_along_axis(logits_BCV, labels_BC[..., None], axis=-1)[..., 0]
        return label_BC - total_BC, logits_BCV.max(axis=-1) - total_BC, logits_BCV.argmax(axis=-1) == labels_BC

    pieces = jax.lax.map(piece, jnp.arange(count))

    def joined(x_PBC: jax.Array) -> jax.Array:
        x_BT = x_PBC[:-1].swapaxes(0, 1).reshape(B, -1)
        return jnp.concatenate([x_BT, x_PBC[-1][:, size - (T - (count - 1) * size) :]], axis=1)

    log_p_BT, top_BT, hit_BT = map(joined, pieces)
    return log_p_BT, top_BT, hit_BT

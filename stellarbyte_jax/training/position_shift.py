"""Shifts positions in training, so that those beyond the length of a row are trained as well."""

import jax
import jax.numpy as jnp

# Dropout uses the same seed; this number gives the offsets a random stream of their own.
_SHIFT_STREAM = 0x5417


def shifted(batch: dict[str, jax.Array], most: int, seed: int, step: jax.Array) -> dict[str, jax.Array]:
    """The batch with an offset added to all positions of each document: int32 arrays [B, T].

    An offset is drawn evenly from 0 to `most`, by the seed, the step, the row in the batch and the document in the row
    alone. Padding stays at 0, and which tokens see each other stays as it is.

    With RoPE and XPos a score depends on the distance of two positions alone, so an offset changes no score but by
    rounding. What it changes is where training computes: the angles of RoPE, and the factors by which XPos, with fixed
    or learned zeta, scales queries and keys, are then met in the type of computation up to the highest position, and
    not only up to the length of a row. It teaches no distances that are longer than a row; for models whose positions
    are absolute, see Kiyono et al. 2021, arXiv:2109.05644.
    """
    B, T = batch["input_ids"].shape
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _SHIFT_STREAM), step)
    segment_ids_BT, position_ids_BT = batch.get("segment_ids"), batch.get("position_ids")
    if position_ids_BT is None:
        position_ids_BT = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T))
    if segment_ids_BT is None:
        segment_ids_BT = jnp.ones((B, T), jnp.int32)
    # A row has T documents at most, numbered from 1; each draw is a function of its place in this array.
    offsets_BT = jax.random.randint(key, (B, T), 0, most + 1, jnp.int32)
    offset_BT = jnp.take_along_axis(offsets_BT, jnp.maximum(segment_ids_BT - 1, 0), axis=1)
    return batch | {"position_ids": position_ids_BT + jnp.where(segment_ids_BT > 0, offset_BT, 0)}

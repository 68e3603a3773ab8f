"""Sums over an array's bits, the same for every sharding, by which damage to a checkpoint is noticed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte_jax.checkpoints.part_sums import part_sum

Tree = Any


def checksums(tree: Tree) -> dict[str, int]:
    """Dotted name -> sum of (2 i + 1) times the bits of element i, modulo 2^32.

    Because the factors are odd, any change of one element changes the sum. The order of integer sums does not matter,
    so every sharding gives the same numbers, and each host needs only its own part.
    """
    sums = {name: part_sum(x) if isinstance(x, np.ndarray) else _device_sum(x) for name, x in by_name(tree).items()}
    return {name: int(value) for name, value in jax.device_get(sums).items()}


@jax.jit
def _device_sum(array: jax.Array) -> jax.Array:
    array = array.astype(jnp.uint8) if array.dtype == bool else array  # of which JAX gives no bits, but they are these
    bits = jax.lax.bitcast_convert_type(array, f"uint{8 * array.dtype.itemsize}").astype(jnp.uint32)
    # The index is built axis by axis: flattening a sharded array would gather it.
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def by_name(tree: Tree) -> dict[str, Any]:
    """Dotted name -> leaf; a named tuple's fields and a dict's keys give equal names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}

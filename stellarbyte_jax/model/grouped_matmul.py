"""Matmuls of rows that are grouped by expert, each group with its own matrix."""

import jax


def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """[M, D] x [E, D, F] -> [M, F]: the first group_sizes[0] rows times w[0], the next group_sizes[1] times w[1], ….

    The sizes, int32, add up to M.
    """
    return jax.lax.ragged_dot(x_MD, w_EDF, group_sizes_E)

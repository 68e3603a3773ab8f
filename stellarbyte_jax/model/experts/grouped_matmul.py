"""Multiplies rows that are grouped by expert, each group with a matrix of its own."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox.gmm import gmm, tgmm

# XLA's CPU backend multiplies this many rows at nearly full speed; more would only pad the groups further.
_MOST_ROWS_A_BLOCK = 256
# Reading an expert's matrix costs about as much as multiplying this many rows with it.
_FEWEST_ROWS_A_BLOCK = 16
# The tiles of a TPU kernel have to fit its fast memory: bytes of the two other axes, and rows. A tile at the border of
# two groups is multiplied once for each group, so tiles have few rows if groups are small.
_TILE_BYTES = 2048
_MOST_ROWS_A_TILE = 512
_FEWEST_ROWS_A_TILE = 128


@jax.custom_vjp
def grouped_matmul(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """[M, D] x [E, D, F] -> [M, F]: the first group_sizes[0] rows times w[0], the next group_sizes[1] times w[1], ….

    The sizes, int32, add up to M at most; the rows after them are undefined, also in the gradient of x.
    """
    # On a CPU, XLA's ragged_dot multiplies every row with every expert. On a TPU it takes six times the cycles of a
    # dense matmul, by its compiler's own count, or does not compile for lack of fast memory.
    return jax.lax.platform_dependent(
        x_MD, w_EDF, group_sizes_E, cpu=_blockwise, tpu=_tiled, default=jax.lax.ragged_dot
    )


def _forward(x_MD, w_EDF, group_sizes_E):  # type: ignore[no-untyped-def]
    return grouped_matmul(x_MD, w_EDF, group_sizes_E), (x_MD, w_EDF, group_sizes_E)


def _backward(operands, d_MF):  # type: ignore[no-untyped-def]
    gradients = jax.lax.platform_dependent(
        *operands, d_MF, cpu=_blockwise_gradient, tpu=_tiled_gradient, default=_ragged_gradient
    )
    return *gradients, None


grouped_matmul.defvjp(_forward, _backward)


def _ragged_gradient(
    x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, d_MF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, pull_back = jax.vjp(lambda x_MD, w_EDF: jax.lax.ragged_dot(x_MD, w_EDF, group_sizes_E), x_MD, w_EDF)
    return pull_back(d_MF)


def _tiled(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, *, interpret: bool = False) -> jax.Array:
    """The product by JAX's own kernel for TPUs, MegaBlocks' (Gale et al. 2022, arXiv:2211.15841)."""
    padded, tiling = _tiles(x_MD, w_EDF.shape)
    y_MF = gmm(padded, w_EDF, group_sizes_E, x_MD.dtype, tiling, interpret=interpret)
    return y_MF[: x_MD.shape[0]]


def _tiled_gradient(
    x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, d_MF: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    E, D, F = w_EDF.shape
    padded, tiling = _tiles(d_MF, (E, F, D))
    dx_MD = gmm(padded, w_EDF, group_sizes_E, x_MD.dtype, tiling, transpose_rhs=True, interpret=interpret)
    x_padded, tiling = _tiles(x_MD, w_EDF.shape)
    dw_EDF = tgmm(x_padded.T, padded, group_sizes_E, w_EDF.dtype, tiling, interpret=interpret)
    return dx_MD[: x_MD.shape[0]], dw_EDF


def _tiles(x_MD: jax.Array, weights: tuple[int, ...]) -> tuple[jax.Array, tuple[int, int, int]]:
    """(x padded to whole tiles, the rows and sides of tiles for weights [E, D, F])."""
    (M, _), (E, D, F) = x_MD.shape, weights
    rows = min(_MOST_ROWS_A_TILE, max(_FEWEST_ROWS_A_TILE, _power_of_two(M // (4 * E))))
    side = _TILE_BYTES // x_MD.dtype.itemsize
    return jnp.pad(x_MD, ((0, -M % rows), (0, 0))), (rows, min(side, D), min(side, F))


def _blockwise(x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array) -> jax.Array:
    """The product block after block of one group's rows; a block leaves rows of other groups as they were."""
    size = _rows_a_block(x_MD.shape[0], w_EDF.shape[0])

    def multiply(i: jax.Array, y_MF: jax.Array) -> jax.Array:
        expert, start, own_J1 = _block(i, size, group_sizes_E, x_MD.shape[0])
        y_JF = _rows(x_MD, start, size) @ w_EDF[expert]
        y_JF = jnp.where(own_J1, y_JF, _rows(y_MF, start, size))
        return jax.lax.dynamic_update_slice_in_dim(y_MF, y_JF, start, 0)

    y_MF = jnp.zeros((x_MD.shape[0], w_EDF.shape[2]), x_MD.dtype)
    return jax.lax.fori_loop(0, _block_counts(size, group_sizes_E).sum(), multiply, y_MF)


def _blockwise_gradient(
    x_MD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, d_MF: jax.Array
) -> tuple[jax.Array, jax.Array]:
    size = _rows_a_block(x_MD.shape[0], w_EDF.shape[0])

    def add(i: jax.Array, gradients: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        dx_MD, dw_EDF = gradients
        expert, start, own_J1 = _block(i, size, group_sizes_E, x_MD.shape[0])
        d_JF = jnp.where(own_J1, _rows(d_MF, start, size), 0)
        dx_JD = _rows(dx_MD, start, size) + d_JF @ w_EDF[expert].T
        dw_DF = jnp.matmul(_rows(x_MD, start, size).T, d_JF, preferred_element_type=jnp.float32)
        dx_MD = jax.lax.dynamic_update_slice_in_dim(dx_MD, dx_JD, start, 0)
        return dx_MD, dw_EDF.at[expert].add(dw_DF)

    zeros = jnp.zeros_like(x_MD), jnp.zeros(w_EDF.shape, jnp.float32)
    dx_MD, dw_EDF = jax.lax.fori_loop(0, _block_counts(size, group_sizes_E).sum(), add, zeros)
    return dx_MD, dw_EDF.astype(w_EDF.dtype)


def _rows_a_block(rows: int, experts: int) -> int:
    """The power of two near half the mean size of a group; larger blocks pad more, smaller ones read more matrices."""
    half = _power_of_two(rows // (2 * experts))
    return min(rows, max(_FEWEST_ROWS_A_BLOCK, min(_MOST_ROWS_A_BLOCK, half)))


def _power_of_two(largest: int) -> int:
    return 1 << (max(1, largest).bit_length() - 1)


def _block_counts(size: int, group_sizes_E: jax.Array) -> jax.Array:
    return (group_sizes_E + size - 1) // size


def _block(i: jax.Array, size: int, group_sizes_E: jax.Array, rows: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The expert and the first row of block i, and whether each of its rows belongs to it: bool [size, 1].

    A block that would reach beyond the last row starts earlier.
    """
    counts_E, group_ends_E = _block_counts(size, group_sizes_E), jnp.cumsum(group_sizes_E)
    block_ends_E = jnp.cumsum(counts_E)
    expert = jnp.sum(block_ends_E <= i)
    first = group_ends_E[expert] - group_sizes_E[expert] + (i - block_ends_E[expert] + counts_E[expert]) * size
    start = jnp.minimum(first, rows - size)
    row_J = start + jnp.arange(size)
    return expert, start, ((row_J >= first) & (row_J < group_ends_E[expert]))[:, None]


def _rows(x: jax.Array, start: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, start, size)

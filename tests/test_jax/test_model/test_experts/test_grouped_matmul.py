"""The grouped matmuls of CPUs and TPUs against JAX's ragged_dot and its autodiff, and who gets which."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.model.experts.grouped_matmul import _tiled, _tiled_gradient, grouped_matmul
from test_jax.tiny import relative_error
from tiers import short_tier

D, F = 5, 7


def operands(sizes: list[int], dtype: str = "float32") -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    x_key, w_key, d_key = jax.random.split(jax.random.key(0), 3)
    x_MD = jax.random.normal(x_key, (sum(sizes), D)).astype(dtype)
    w_EDF = jax.random.normal(w_key, (len(sizes), D, F)).astype(dtype)
    d_MF = jax.random.normal(d_key, (sum(sizes), F)).astype(dtype)
    return x_MD, w_EDF, jnp.array(sizes, jnp.int32), d_MF


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(matmul, x_MD, w_EDF, sizes_E, d_MF):
    """(the products, their gradients by x and w)."""
    y_MF, pull_back = jax.vjp(lambda x, w: matmul(x, w, sizes_E), x_MD, w_EDF)
    return y_MF, *pull_back(d_MF)


# Groups that fill whole blocks, begin or end inside one, are empty (first, last and between), or all there is; fewer
# rows than a block; and so many that blocks are as large as they get.
@pytest.mark.parametrize(
    "sizes",
    short_tier(
        [[32, 16], [1], [0, 0, 1], [3, 0, 5, 0], [0, 40, 0], [17, 1, 30, 16, 0], [5, 15, 16, 1], [700, 1, 0, 900]],
        *(0, 3, 5, 7),
    ),
    ids=str,
)
def test_each_group_meets_its_own_matrix(sizes: list[int]) -> None:
    x_MD, w_EDF, sizes_E, d_MF = operands(sizes)
    y_MF, *gradients = with_gradients(grouped_matmul, x_MD, w_EDF, sizes_E, d_MF)
    expected, *expected_gradients = with_gradients(jax.lax.ragged_dot, x_MD, w_EDF, sizes_E, d_MF)
    assert relative_error(y_MF, expected) < 1e-6
    for actual, gradient in zip(gradients, expected_gradients, strict=True):
        assert relative_error(actual, gradient) < 1e-5


def test_bfloat16_gradients_add_up_in_float32() -> None:
    """A sum of 4000 thirds kept in bfloat16 would be rounded by up to 4 with each of the last blocks."""
    sizes = [4000] + [0] * 63  # so many experts that blocks are small
    x_MD, w_EDF, sizes_E, d_MF = operands(sizes, "bfloat16")
    x_MD, d_MF = jnp.full_like(x_MD, 1 / 3), jnp.ones_like(d_MF)
    y_MF, dx_MD, dw_EDF = with_gradients(grouped_matmul, x_MD, w_EDF, sizes_E, d_MF)
    assert {y_MF.dtype, dx_MD.dtype, dw_EDF.dtype} == {jnp.dtype(jnp.bfloat16)}
    assert np.allclose(np.asarray(dw_EDF[0], np.float32), 4000 * float(x_MD[0, 0]), rtol=2**-8)
    assert not np.any(dw_EDF[1:])


# The kernel of TPUs, interpreted: groups within a tile, over several, and with rows behind the last that are nobody's.
@pytest.mark.parametrize(("sizes", "behind"), short_tier([([100, 0, 130, 26], 0), ([0, 300], 7)], 0), ids=str)
def test_the_kernel_of_tpus(sizes: list[int], behind: int) -> None:
    x_MD, w_EDF, sizes_E, d_MF = operands(sizes)
    expected = with_gradients(jax.lax.ragged_dot, x_MD, w_EDF, sizes_E, d_MF)
    x_more, d_more = (jnp.pad(x, ((0, behind), (0, 0)), constant_values=jnp.nan) for x in (x_MD, d_MF))
    y_MF = _tiled(x_more, w_EDF, sizes_E, interpret=True)
    dx_MD, dw_EDF = _tiled_gradient(x_more, w_EDF, sizes_E, d_more, interpret=True)
    assert y_MF.shape == d_more.shape and dx_MD.shape == x_more.shape
    own = slice(sum(sizes))
    for actual, exact in zip((y_MF[own], dx_MD[own], dw_EDF), expected, strict=True):
        assert relative_error(actual, exact) < 1e-5


def lowered(platform: str) -> str:
    x_MD, w_EDF, sizes_E, d_MF = operands([10, 20, 10])

    def gradients(x_MD: jax.Array, w_EDF: jax.Array) -> tuple[jax.Array, ...]:
        y_MF, pull_back = jax.vjp(lambda x, w: grouped_matmul(x, w, sizes_E), x_MD, w_EDF)
        return y_MF, *pull_back(d_MF)

    return jax.jit(gradients).trace(x_MD, w_EDF).lower(lowering_platforms=(platform,)).as_text()


def test_accelerators_get_their_own_forward_and_backward() -> None:
    text = lowered("cuda")
    assert text.count('"chlo.ragged_dot"(') == 3
    assert "while" not in text
    text = lowered("tpu")
    assert text.count("tpu_custom_call") == 3
    assert "ragged_dot" not in text

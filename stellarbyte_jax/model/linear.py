"""The linear projection, of which every part of the decoder is made."""

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.weight_grid import WeightGrid


class Linear(nnx.Module):
    """y = x W (+ b), with a float32 kernel [in, out] that is cast to the compute dtype where it is used.

    `axes` names the kernel's two logical axes, which sharding.py maps to the mesh. If the model trains on a grid, the
    kernel is rounded to it before it is cast.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str, str],
        stddev: float,
        execution: Execution,
        rngs: nnx.Rngs,
        bias: bool = False,
    ) -> None:
        kernel = stddev * jax.random.normal(rngs.params(), (in_features, out_features), jnp.float32)
        self.kernel = nnx.Param(kernel, axes=axes, decays=True)
        zeros = jnp.zeros((out_features,), jnp.float32)
        self.bias = nnx.Param(zeros, axes=axes[1:], decays=False) if bias else None
        self.dtype, self.axes, self.layout = jnp.dtype(execution.dtype), axes, execution.layout
        self.weight_grid = execution.weight_grid

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out] in the compute dtype."""
        y = self.rows(x) @ used(self.kernel[...], self.weight_grid, self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return self._placed(y.reshape(*x.shape[:-1], -1), self.axes[1])

    def rows(self, x: jax.Array) -> jax.Array:
        """x in the compute dtype, in the shape that makes matmuls fastest."""
        x = x.astype(self.dtype)
        # One axis of rows makes plain 2-D matmuls, the fastest on XLA's CPU backend, forward and backward. On a mesh,
        # rows and tokens may be split over different devices, so they have to stay two axes.
        return x.reshape(-1, x.shape[-1]) if self.layout.mesh.size == 1 else self._placed(x, self.axes[0])

    def _placed(self, x_BTX: jax.Array, channels: str) -> jax.Array:
        """Places heads and inner channels, and their gradients, on tensor; callers place the hidden states."""
        return x_BTX if channels == "hidden" else self.layout.constrain(x_BTX, "batch", "length", channels)


def used(weights: jax.Array, grid: WeightGrid | None, dtype: jnp.dtype) -> jax.Array:
    """One layer's float32 weights as a matmul takes them: rounded to the grid, if there is one, and cast."""
    return cast(weights if grid is None else grid.rounded(weights), dtype)


def cast(weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """One layer's float32 weights in the compute dtype, cast again wherever they are used.

    From a plain cast of one layer's slice, XLA for TPUs makes a cast of all layers' weights, before the loop over
    layers, and keeps it through the loop. It does not do so with an explicit rounding, which changes no value.
    """
    return weights if weights.dtype == dtype else _rounded(weights, dtype)


def _round(weights: jax.Array, dtype: jnp.dtype) -> jax.Array:
    info = jnp.finfo(dtype)
    return jax.lax.reduce_precision(weights, info.nexp, info.nmant).astype(dtype)


_rounded = jax.custom_jvp(_round, nondiff_argnums=(1,))


@_rounded.defjvp
def _(dtype, primals, tangents):  # type: ignore[no-untyped-def]
    # This is the gradient of a plain cast: the tangent is rounded already and needs no second rounding.
    return _round(primals[0], dtype), tangents[0].astype(dtype)

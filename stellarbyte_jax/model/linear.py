"""The projection that every part of the decoder is made of."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
    """y = x W (+ b), with a float32 kernel [in, out] cast to the compute dtype at use.

    `axes` names the kernel's two logical axes, which sharding.py maps to the mesh.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        axes: tuple[str, str],
        stddev: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        bias: bool = False,
    ) -> None:
        kernel = stddev * jax.random.normal(rngs.params(), (in_features, out_features), jnp.float32)
        self.kernel = nnx.Param(kernel, axes=axes)
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32), axes=axes[1:]) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:  # noqa: ARG002
        """[..., in] -> [..., out] in the compute dtype. Only an adapter, in lora.py, draws from `dropout_key`."""
        # A plain 2-D matmul: XLA's CPU backend runs nothing faster, forward and backward.
        x_MD = x.reshape(-1, x.shape[-1]).astype(self.dtype)
        y_MF = x_MD @ self.kernel[...].astype(self.dtype)
        if self.bias is not None:
            y_MF = y_MF + self.bias[...].astype(self.dtype)
        return y_MF.reshape(*x.shape[:-1], -1)

"""The gated feed-forward layer."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.linear import Linear

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


class FeedForward(nnx.Module):
    """down(act(gate x) · up x): SwiGLU when `hidden_act` is silu (Shazeer 2020, arXiv:2002.05202).

    `width` is the number of inner channels, by default `intermediate_size`.
    """

    def __init__(
        self,
        config: ByteConfig,
        *,
        width: int | None = None,
        stddev: float,
        output_stddev: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        D, F = config.hidden_size, width or config.intermediate_size
        self.gate_proj = Linear(D, F, axes=("hidden", "feed_forward"), stddev=stddev, dtype=dtype, rngs=rngs)
        self.up_proj = Linear(D, F, axes=("hidden", "feed_forward"), stddev=stddev, dtype=dtype, rngs=rngs)
        self.down_proj = Linear(F, D, axes=("feed_forward", "hidden"), stddev=output_stddev, dtype=dtype, rngs=rngs)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array, adapters_key: jax.Array | None = None) -> jax.Array:
        """[..., D] -> [..., D]; adapters' dropout draws from `adapters_key`."""
        h = gated(self.hidden_act, self.gate_proj(x, adapters_key), self.up_proj(x, adapters_key))
        return self.down_proj(h, adapters_key)


@functools.partial(jax.checkpoint, static_argnums=0)
def gated(hidden_act: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """act(gate) · up; its inner values are cheaper to work out again in the backward pass than to keep."""
    return ACTIVATIONS[hidden_act](gate) * up

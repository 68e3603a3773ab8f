"""The gated feed-forward layer."""

import functools

import jax
from flax import nnx

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.execution import Execution
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
        execution: Execution,
        rngs: nnx.Rngs,
    ) -> None:
        D, F = config.hidden_size, width or config.intermediate_size
        inwards, outwards = ("hidden", "feed_forward"), ("feed_forward", "hidden")
        linear = functools.partial(Linear, execution=execution, rngs=rngs)
        self.gate_proj = linear(D, F, axes=inwards, stddev=stddev)
        self.up_proj = linear(D, F, axes=inwards, stddev=stddev)
        self.down_proj = linear(F, D, axes=outwards, stddev=output_stddev)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] -> [..., D]."""
        return self.down_proj(gated(self.hidden_act, self.gate_proj(x), self.up_proj(x)))


@functools.partial(jax.checkpoint, static_argnums=0)
def gated(hidden_act: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """act(gate) · up; computing its inner values again in the backward pass is cheaper than keeping them."""
    return ACTIVATIONS[hidden_act](gate) * up

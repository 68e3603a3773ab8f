"""The gated feed-forward layer."""

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
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

    `width` is the number of inner channels, by default the widest layer's. A narrower layer has zeros in the channels
    behind its own width. These channels give 0, and get gradients of 0, so they stay zero in training.
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
        D, F = config.hidden_size, width or max(config.intermediate_sizes)
        inwards, outwards = ("hidden", "feed_forward"), ("feed_forward", "hidden")
        linear = functools.partial(Linear, execution=execution, rngs=rngs)
        self.gate_proj = linear(D, F, axes=inwards, stddev=stddev)
        self.up_proj = linear(D, F, axes=inwards, stddev=stddev)
        self.down_proj = linear(F, D, axes=outwards, stddev=output_stddev)
        self.hidden_act = config.hidden_act

    def __call__(self, x: jax.Array, tap: Callable[[jax.Array], jax.Array] = lambda h: h) -> jax.Array:
        """[..., D] -> [..., D]; `tap` is given the inner channels."""
        return self.down_proj(tap(gated(self.hidden_act, self.gate_proj(x), self.up_proj(x))))


def keep_widths(stacked: nnx.Module, widths: Sequence[int]) -> None:
    """Puts zeros in the channels of stacked feed-forward networks behind the width of each layer, in place."""
    for variable, axis in _with_channels(stacked):
        values = variable.get_value()
        kept_LF = np.arange(values.shape[axis]) < np.asarray(widths)[:, None]
        shape = [len(widths), *(1,) * (values.ndim - 1)]
        shape[axis] = values.shape[axis]
        variable.set_value(jnp.where(kept_LF.reshape(shape), values, 0))


def cut_to_width(feed_forward: nnx.Module, width: int) -> None:
    """Cuts one layer's network, its adapters included, down to its first `width` channels, in place."""
    for variable, axis in _with_channels(feed_forward):
        variable.set_value(jax.lax.slice_in_dim(variable.get_value(), 0, width, axis=axis))


def _with_channels(module: nnx.Module) -> Iterator[tuple[nnx.Param[jax.Array], int]]:
    """Each parameter that has inner channels, and their axis, counted from the last."""
    for _, variable in nnx.iter_graph(module):
        axes = variable.get_metadata().get("axes", ()) if isinstance(variable, nnx.Param) else ()
        if "feed_forward" in axes:
            yield variable, axes.index("feed_forward") - len(axes)


@functools.partial(jax.checkpoint, static_argnums=0)
def gated(hidden_act: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """act(gate) · up; computing its inner values again in the backward pass is cheaper than keeping them."""
    return ACTIVATIONS[hidden_act](gate) * up

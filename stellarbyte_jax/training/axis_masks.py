"""Puts zeros in some channels of the arrays that have a logical axis, or takes these channels out."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from stellarbyte_jax.training.optimizer_state import Axes


def zeroed(tree: Any, axes: Any, kept: Mapping[str, jax.Array]) -> Any:
    """The tree with zeros wherever a channel is not kept.

    Args:
        tree: arrays of stacked layers, such as parameters or an optimizer's state.
        axes: the Axes of each array, as a tree like it.
        kept: logical axis -> bool [L, length]: which of its channels a layer keeps. Arrays that lack the axis stay.
    """

    def one(array: jax.Array, axes: Axes) -> jax.Array:
        for name, kept_LX in kept.items():
            if name in axes.names:
                array = jnp.where(_along(kept_LX, axes, name), array, 0)
        return array

    return jax.tree.map(one, tree, axes)


def narrowed(tree: Any, axes: Any, name: str, kept_LX: Any) -> Any:
    """The tree with the kept channels of a logical axis alone, in their order, and zeros behind them in short layers.

    The axis becomes as long as the layer with the most channels needs it; see `zeroed` for the arguments.
    """
    width = int(kept_LX.sum(axis=1).max())
    # A stable sort brings the kept channels of each layer to the front.
    source_LW = jnp.argsort(~kept_LX, axis=1, stable=True)[:, :width]
    is_channel_LW = jnp.take_along_axis(jnp.asarray(kept_LX), source_LW, axis=1)

    def one(array: jax.Array, axes: Axes) -> jax.Array:
        if name not in axes.names:
            return array
        assert axes.names[0] == "layers"
        axis = axes.names.index(name)
        taken = jax.vmap(lambda layer, source_W: jnp.take(layer, source_W, axis=axis - 1))(array, source_LW)
        return jnp.where(_along(is_channel_LW, axes, name), taken, 0)

    return jax.tree.map(one, tree, axes)


def _along(values_LX: jax.Array, axes: Axes, name: str) -> jax.Array:
    """Values of each layer's channels in a shape that broadcasts against an array with these axes."""
    shape = [1] * len(axes.names)
    shape[axes.names.index("layers")], shape[axes.names.index(name)] = values_LX.shape
    return values_LX.reshape(shape)

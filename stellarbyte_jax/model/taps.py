"""Measures values inside a model, and their gradients, in its backward pass."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from stellarbyte.architecture import ByteConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Taps:
    """Zeros, one array a measurement, whose gradients are the measurements; see stellarbyte.pruning.scores.Statistics.

    In a decoder's arguments each has an axis of layers in front. Padding is not counted.
    """

    heads: jax.Array
    head_squares: jax.Array
    channels: jax.Array
    channel_squares: jax.Array
    experts: jax.Array
    layer: jax.Array
    layer_angle: jax.Array

    @classmethod
    def zeros(cls, config: ByteConfig) -> "Taps":
        """Taps for all layers of a model."""
        L, N, F = config.num_hidden_layers, config.num_attention_heads, max(config.intermediate_sizes)
        F = 0 if config.num_experts else F
        shapes = (N,), (N, config.head_dim or 0), (F,), (F,), (config.num_experts,), (), ()
        return cls(*(jnp.zeros((L, *shape), jnp.float32) for shape in shapes))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tapped(measure: Callable[..., Any], x: jax.Array, beside: Any, taps: Any) -> jax.Array:
    """x itself; the gradient of `taps` is measure(x, gradient of x, beside), which has no gradient of its own."""
    del measure, beside, taps
    return x


def _forward(measure: Callable[..., Any], x: jax.Array, beside: Any, taps: Any) -> tuple[jax.Array, Any]:
    del measure, taps
    return x, (x, beside)


def _backward(measure: Callable[..., Any], kept: Any, gradient: jax.Array) -> tuple[jax.Array, Any, Any]:
    x, beside = kept
    none = jax.tree.map(lambda each: None if jnp.issubdtype(each.dtype, jnp.integer) else jnp.zeros_like(each), beside)
    return gradient, none, measure(x, gradient, beside)


tapped.defvjp(_forward, _backward)


def tapped_heads(out_BKGTH: jax.Array, real_BT: jax.Array, taps: Taps) -> jax.Array:
    """The heads' outputs, measured for `heads` and `head_squares`."""

    def measure(x: jax.Array, gradient: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
        effect_BKGT = jnp.abs(jnp.sum(x * gradient, axis=-1))
        squares_KGH = jnp.einsum("BKGTH,BT->KGH", x * x, real_BT)
        return effect_BKGT.sum(axis=(0, 3)).reshape(-1), squares_KGH.reshape(-1, x.shape[-1])

    return tapped(measure, out_BKGTH, real_BT, (taps.heads, taps.head_squares))


def tapped_channels(h_BTF: jax.Array, real_BT: jax.Array, taps: Taps) -> jax.Array:
    """The inner channels of a dense feed-forward network, measured for `channels` and `channel_squares`."""

    def measure(x: jax.Array, gradient: jax.Array, real_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, gradient = x.astype(jnp.float32), gradient.astype(jnp.float32)
        return jnp.abs(x * gradient).sum(axis=(0, 1)), jnp.einsum("BTF,BT->F", x * x, real_BT)

    return tapped(measure, h_BTF, real_BT, (taps.channels, taps.channel_squares))


def tapped_experts(weight_BTk: jax.Array, expert_BTk: jax.Array, real_BT: jax.Array, taps: Taps) -> jax.Array:
    """The weights of the chosen experts, measured for `experts`."""
    E = taps.experts.shape[-1]

    def measure(x: jax.Array, _: jax.Array, beside: tuple[jax.Array, jax.Array]) -> jax.Array:
        expert_BTk, real_BT = beside
        return jnp.einsum("BTk,BTkE,BT->E", x.astype(jnp.float32), jax.nn.one_hot(expert_BTk, E), real_BT)

    return tapped(measure, weight_BTk, (expert_BTk, real_BT), taps.experts)


def tapped_layer(out_BTD: jax.Array, in_BTD: jax.Array, real_BT: jax.Array, taps: Taps) -> jax.Array:
    """A layer's output beside its input, measured for `layer` and `layer_angle`."""

    def measure(x: jax.Array, gradient: jax.Array, beside: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        before, real_BT = beside
        x, gradient, before = (each.astype(jnp.float32) for each in (x, gradient, before))
        effect_BT = jnp.abs(jnp.sum(gradient * (x - before), axis=-1))
        norms_BT = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(before, axis=-1)
        cosine_BT = jnp.sum(x * before, axis=-1) / jnp.maximum(norms_BT, 1e-30)
        return effect_BT.sum(), jnp.sum((1 - cosine_BT) * real_BT)

    return tapped(measure, out_BTD, (in_BTD, real_BT), (taps.layer, taps.layer_angle))

"""Measures what each module of a model gives, and the gradient there, in one pass forward and one backward."""

import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte_jax.model.block import Block
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.linear import Linear
from stellarbyte_jax.model.norm import RMSNorm
from stellarbyte_jax.model.taps import tapped

# The numbers of a Spread, in their order: the largest size; the sum of squares over its square; how many numbers are
# zero, and how many are not finite.
LARGEST, SQUARES, ZEROS, NOT_FINITE = range(4)


def spread(x: jax.Array) -> jax.Array:
    """The four numbers of an array, float32 [4]; what is not finite is in the last alone."""
    x = x.astype(jnp.float32)
    finite = jnp.isfinite(x)
    sizes = jnp.abs(jnp.where(finite, x, 0))
    largest = sizes.max(initial=0.0)
    # Squares of large numbers would leave the range of float32.
    shares = sizes / jnp.where(largest > 0, largest, 1)
    return jnp.stack(
        [largest, (shares * shares).sum(), (x == 0).sum(dtype=jnp.float32), (~finite).sum(dtype=jnp.float32)]
    )


class Probes:
    """What watches a model.

    Attributes:
        sizes: name -> how many numbers it gives, in the order of computation, once the model has been called.
    """

    def __init__(self, zeros: Mapping[str, jax.Array] | None = None) -> None:
        """zeros: name -> float32 [2, 4], whose gradients become the spreads of values and gradients; None for none."""
        self._zeros, self.sizes = zeros, {}  # type: ignore[var-annotated]

    def watch(self, name: str, x: jax.Array) -> jax.Array:
        """The same values."""
        assert name not in self.sizes, name
        self.sizes[name] = x.size
        if self._zeros is None:
            return x
        return tapped(lambda x, gradient, _: jnp.stack([spread(x), spread(gradient)]), x, (), self._zeros[name])


def probed(model: ByteForCausalLM, probes: Probes) -> ByteForCausalLM:
    """The same model, of which each module in turn is watched: by the names of Hugging Face's Llama."""
    model = model.unstack()
    decoder = model.model
    assert isinstance(decoder.layers, nnx.List)
    _watch(decoder.embed_tokens, "model.embed_tokens", probes)
    for number, block in enumerate(decoder.layers):
        name = f"model.layers.{number}"
        for path, module in nnx.iter_modules(block):
            below = ".".join(map(str, path))
            if path and (isinstance(module, RMSNorm | Linear) or (below == "mlp" and not hasattr(module, "down_proj"))):
                _watch(module, f"{name}.{below}", probes)
        _watch(block, name, probes)
    _watch(decoder.norm, "model.norm", probes)
    return model


def _watch(module: Any, name: str, probes: Probes) -> None:
    """Makes calls of this one module watched. It stays an instance of its class, which others look at."""
    kind = type(module)

    def call(self: Any, *arguments: Any) -> Any:
        if isinstance(self, Block):  # the decoder does this where layers are scanned
            key = arguments[2].dropout_key
            self.set_attributes(dropout_key=key, raise_if_not_found=False)
        given = kind.__call__(self, *arguments)
        if isinstance(given, tuple):
            first = probes.watch(name, given[0])
            return given._replace(x_BTD=first) if hasattr(given, "_replace") else (first, *given[1:])
        return probes.watch(name, given)

    module.__class__ = types.new_class(kind.__name__, (kind,), {}, lambda names: names.update(__call__=call))

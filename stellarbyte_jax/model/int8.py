"""Weights in int8, for generating text, where reading weights takes the time.

Only the weights are rounded: activations are multiplied with them in parts that hold what float32 holds.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from stellarbyte_jax.model.experts.device import serve_experts
from stellarbyte_jax.model.experts.moe import Experts
from stellarbyte_jax.model.feed_forward import gated
from stellarbyte_jax.model.int8_parts import LARGEST, MOST_PRODUCTS, in_parts, joined
from stellarbyte_jax.model.linear import Linear
from stellarbyte_jax.model.weight_grid import quotient
from stellarbyte_jax.sharding import ONE_DEVICE

# XLA's CPU backend is slow at int8 matrices with more rows than this; larger ones are blocks of at most so many.
_MOST_ROWS_A_BLOCK = 2048
# Reading one expert's matrices for each of more (row, choice) pairs takes longer than making floats of all of them.
_MOST_PAIRS = 16


class Scales(nnx.Variable):
    """The scales of int8 weights, one for each output channel; they are no parameters."""


class Int8Weights(nnx.Module):
    """A matrix of weights, symmetric in int8 with a float32 scale for each output channel.

    Attributes:
        codes: int8 [..., n, out / n, in], in n blocks of output channels, the last of which may end in zeros.
        scales: float32 [..., out].
    """

    def __init__(self, weights: jax.Array) -> None:
        """Of float32 weights [..., in, out]."""
        assert weights.shape[-2] <= MOST_PRODUCTS
        codes, scales = _coded(weights)
        self.codes, self.scales = nnx.Param(codes), Scales(scales)

    def product(self, x_MX: jax.Array) -> jax.Array:
        """x times the weights of one matrix in float32, [M, in] -> [M, out]."""
        return int8_product(x_MX, self.codes[...], self.scales[...])

    def rows(self, index: jax.Array) -> jax.Array:
        """The weights of some output channels of one matrix: int [...] -> float32 [..., in]."""
        codes = self.codes[...]
        return codes.reshape(-1, codes.shape[-1])[index].astype(jnp.float32) * self.scales[...][index][..., None]

    def floats(self) -> jax.Array:
        """All weights, float32 [..., in, out]."""
        codes, scales = self.codes[...], self.scales[...]
        codes = codes.reshape(*codes.shape[:-3], -1, codes.shape[-1])[..., : scales.shape[-1], :]
        return (codes.astype(jnp.float32) * scales[..., None]).swapaxes(-1, -2)


@jax.jit
def _coded(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(codes, scales) of Int8Weights."""
    scales = quotient(jnp.abs(weights).max(axis=-2), float(LARGEST))
    codes = jnp.round(quotient(weights, jnp.where(scales > 0, scales, 1.0)[..., None, :]))
    codes = codes.astype(jnp.int8).swapaxes(-1, -2)
    *outer, outputs, inputs = codes.shape
    n = _blocks(outputs)
    codes = jnp.pad(codes, (*((0, 0) for _ in outer), (0, -outputs % n), (0, 0)))
    return codes.reshape(*outer, n, -1, inputs), scales


def int8_product(x_MX: jax.Array, codes_nCX: jax.Array, scales_C: jax.Array) -> jax.Array:
    """x times the weights of Int8Weights, as exact as float32: [M, in] -> float32 [M, out]."""
    parts_MX, step_M1 = in_parts(x_MX)
    # The weights are the left operand: XLA would pack the right one anew in every call.
    n = codes_nCX.shape[0]
    sums_nCM = jax.lax.dot_general(
        codes_nCX,
        jnp.broadcast_to(parts_MX, (n, *parts_MX.shape)),
        (((2,), (2,)), ((0,), (0,))),
        preferred_element_type=jnp.int32,
    )
    sums_CM = sums_nCM.reshape(-1, parts_MX.shape[0])[: scales_C.size]
    return joined(sums_CM.T, step_M1) * scales_C


def _blocks(outputs: int) -> int:
    """The fewest blocks that are small enough; if a few more divide the outputs without a rest, so many."""
    fewest = -(-outputs // _MOST_ROWS_A_BLOCK)
    return next((n for n in range(fewest, 2 * fewest) if outputs % n == 0), fewest)


class Int8Linear(nnx.Module):
    """y = x W (+ b) by int8 weights."""

    def __init__(self, linear: Linear) -> None:
        self.weights = Int8Weights(linear.kernel[...])
        self.bias, self.dtype = linear.bias, linear.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] -> [..., out] in the compute dtype."""
        y = self.weights.product(x.reshape(-1, x.shape[-1])).astype(self.dtype)
        if self.bias is not None:
            y = y + self.bias[...].astype(self.dtype)
        return y.reshape(*x.shape[:-1], -1)


class Int8Embedding(nnx.Module):
    """A table of embeddings that is the head as well, in int8, with a scale for each token."""

    def __init__(self, embedding_VD: jax.Array) -> None:
        self.weights = Int8Weights(embedding_VD.T)

    def __call__(self, input_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        """The embeddings of tokens: int32 [...] -> [..., D]."""
        return self.weights.rows(input_ids).astype(dtype)


class Int8Experts(nnx.Module):
    """The matrices of all experts in int8, gate before up."""

    def __init__(self, experts: Experts) -> None:
        self.gate_up_proj = Int8Weights(experts.gate_up_proj[...])
        self.down_proj = Int8Weights(experts.down_proj[...])
        self.config, self.dtype = experts.config, experts.dtype

    def __call__(self, x_BTD: jax.Array, expert_BTk: jax.Array, weight_BTk: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D]: the sum of weight · expert(x) for each token."""
        act, D, k = self.config.hidden_act, x_BTD.shape[-1], expert_BTk.shape[-1]
        if expert_BTk.size > _MOST_PAIRS:
            gate_up_EDF, down_EFD = (w.floats().astype(self.dtype) for w in (self.gate_up_proj, self.down_proj))
            gate_up_ED2F = gate_up_EDF.reshape(*gate_up_EDF.shape[:2], 2, -1)
            return serve_experts(
                gate_up_ED2F, down_EFD, x_BTD, expert_BTk, weight_BTk, hidden_act=act, layout=ONE_DEVICE
            )

        def serve(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            x_D, expert = pair
            gate_up, down = self.gate_up_proj, self.down_proj
            h_1F = int8_product(x_D[None], gate_up.codes[expert], gate_up.scales[expert]).astype(self.dtype)
            h_1F = gated(act, *jnp.split(h_1F, 2, axis=-1))
            return int8_product(h_1F, down.codes[expert], down.scales[expert])[0]

        x_PD = jnp.repeat(x_BTD.reshape(-1, D), k, axis=0)
        y_PD = jax.lax.map(serve, (x_PD, expert_BTk.reshape(-1)))
        y_PD = y_PD * weight_BTk.reshape(-1, 1)
        return y_PD.reshape(-1, k, D).sum(axis=1).astype(x_BTD.dtype).reshape(x_BTD.shape)


def layers_in_int8(layers: nnx.Module) -> None:
    """Replaces the matrices of layers in place, all but the router's; their arrays may be stacked."""
    for _, parent in list(nnx.iter_modules(layers)):
        for name, child in list(nnx.iter_children(parent)):
            if isinstance(child, Linear):
                setattr(parent, str(name), Int8Linear(child))
            elif isinstance(child, Experts):
                setattr(parent, str(name), Int8Experts(child))

"""Muon: the momentum of each matrix, orthogonalised."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from stellarbyte_jax.sharding import ONE_DEVICE, Layout

# Keller Jordan's polynomial: five iterations take singular values from about 0.003 to 1 to somewhere from 0.7 to 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5

_SMALLEST_NORM = 1e-7


class MuonState(NamedTuple):
    """The running means of the gradients."""

    mu: optax.Updates


def scale_by_muon(momentum: float, layout: Layout = ONE_DEVICE) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) with Nesterov's momentum.

    Every parameter is a matrix [in, out], or a stack of them such as [L, in, out] or [L, E, in, out], each of which is
    orthogonalised by itself. An update is 0.2 · sqrt(max(in, out)) times the orthogonal matrix, which gives its entries
    the root mean square of AdamW's (Liu et al. 2025, arXiv:2502.16982).
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(optax.tree.zeros_like(params))

    def update(
        gradients: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        mu = optax.tree.update_moment(gradients, state.mu, momentum, 1)
        ahead = optax.tree.update_moment(gradients, mu, momentum, 1)
        leaves, tree = jax.tree.flatten(ahead)
        return tree.unflatten(_orthogonalised(leaves, layout)), MuonState(mu)

    return optax.GradientTransformation(init, update)


def _orthogonalised(stacks: list[jax.Array], layout: Layout) -> list[jax.Array]:
    """The scaled updates; all matrices of one shape, or of that shape transposed, are worked on in one batch."""
    done = list(stacks)
    for (few, many), members in by_shape([x.shape for x in stacks]).items():
        tall = {index: stacks[index].shape[-2] > few for index in members}
        parts = [_turned(stacks[index], tall[index]).reshape(-1, few, many) for index in members]
        ends = [sum(len(part) for part in parts[: i + 1]) for i in range(len(parts) - 1)]
        batch = 0.2 * many**0.5 * newton_schulz(jnp.concatenate(parts), layout)
        for index, part in zip(members, jnp.split(batch, ends), strict=True):
            done[index] = _turned(part.reshape(*stacks[index].shape[:-2], few, many), tall[index])
    return done


def by_shape(stacks: Sequence[tuple[int, ...]]) -> dict[tuple[int, int], list[int]]:
    """(few, many) -> which of these shapes [..., few, many] or [..., many, few] are worked on in one batch."""
    batches: dict[tuple[int, int], list[int]] = {}
    for index, shape in enumerate(stacks):
        few, many = sorted(shape[-2:])
        batches.setdefault((few, many), []).append(index)
    return batches


def _turned(matrices: jax.Array, tall: bool) -> jax.Array:
    """The matrices transposed if they are tall, or are to be tall again."""
    return matrices.swapaxes(-1, -2) if tall else matrices


def newton_schulz(x_nab: jax.Array, layout: Layout = ONE_DEVICE) -> jax.Array:
    """U S' Vᵀ for each matrix U S Vᵀ of a batch [n, a, b] with a <= b, where S' is near 1; a matrix of zeros stays so.

    On a mesh, whole matrices are dealt out to the devices that share out parameters, with zeros where these do not
    divide n, so that they are sent once there and once back, and no product in between waits for another device.
    """
    (axes, parts), n, (first, second, third) = _sharing(layout), len(x_nab), COEFFICIENTS
    if axes:
        x_nab = layout.deal(jnp.pad(x_nab, ((0, -n % parts), (0, 0), (0, 0))), axes)
    norm_n11 = jnp.sqrt(jnp.sum(x_nab * x_nab, axis=(1, 2), keepdims=True))

    def iterate(_: int, x_nab: jax.Array) -> jax.Array:
        gram_naa = x_nab @ x_nab.swapaxes(1, 2)
        return first * x_nab + (second * gram_naa + third * gram_naa @ gram_naa) @ x_nab

    x_nab = jax.lax.fori_loop(0, ITERATIONS, iterate, x_nab / jnp.maximum(norm_n11, _SMALLEST_NORM))
    return x_nab[:n]


def newton_schulz_flops(n: int, few: int, many: int, layout: Layout) -> int:
    """FLOPs that the busiest device spends on `n` matrices [few, many]."""
    return ITERATIONS * -(-n // _sharing(layout)[1]) * (4 * few * few * many + 2 * few**3)


def _sharing(layout: Layout) -> tuple[tuple[str, ...], int]:
    """(the mesh axes that share out matrices, which are those that share out parameters; how many parts they make)."""
    axes = tuple(name for name, size in layout.mesh.shape.items() if name != "data" and size > 1)
    return axes, math.prod(layout.mesh.shape[name] for name in axes)

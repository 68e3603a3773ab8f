"""Muon: the momentum of each matrix, orthogonalised."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from stellarbyte_jax.sharding import ONE_DEVICE, Layout

# Keller Jordan's polynomial: five iterations take singular values from about 0.003 to 1 to somewhere near 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5

_SMALLEST_NORM = 1e-7


class MuonState(NamedTuple):
    """The running means of the gradients."""

    mu: optax.Updates


def scale_by_muon(momentum: float, traits: Any, layout: Layout = ONE_DEVICE) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) with Nesterov's momentum.

    Every parameter is a matrix [in, out], or a stack of them such as [L, in, out] or [L, E, in, out], each of which is
    orthogonalised by itself. An update is 0.2 · sqrt(max(in, out)) times the orthogonal matrix, which gives its entries
    the root mean square of AdamW's (Liu et al. 2025, arXiv:2502.16982).

    traits: a tree of Trait; those that are no matrix are not among the parameters.
    """
    specs = [layout.spec(*trait.axes) for trait in jax.tree.leaves(traits) if trait.matrix]

    def init(params: optax.Params) -> MuonState:
        return MuonState(optax.tree.zeros_like(params))

    def update(
        gradients: optax.Updates, state: MuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        mu = optax.tree.update_moment(gradients, state.mu, momentum, 1)
        ahead = optax.tree.update_moment(gradients, mu, momentum, 1)
        stacks, tree = jax.tree.flatten(ahead)
        done = list(stacks)
        for batch, members in batches([x.shape for x in stacks], specs).items():
            places = tuple(specs[member.which] for member in members)
            work = functools.partial(_orthogonalised, batch=batch, members=members, layout=layout)
            results = layout.map(work, places, places)(*(stacks[member.which] for member in members))
            for member, result in zip(members, results, strict=True):
                done[member.which] = result
        return jax.tree.unflatten(tree, done), MuonState(mu)

    return optax.GradientTransformation(init, update)


class Batch(NamedTuple):
    """Matrices [few, many] with few <= many, whose rows and columns lie on these mesh axes."""

    few: int
    many: int
    rows: tuple[str, ...]
    columns: tuple[str, ...]

    def parts(self, layout: Layout) -> int:
        """The number of devices that have a part of each of the matrices."""
        return math.prod(layout.mesh.shape[name] for name in self.rows + self.columns)


class Member(NamedTuple):
    """A stack of matrices in a batch, and whether its matrices are transposed there."""

    which: int
    turned: bool


def batches(shapes: Sequence[tuple[int, ...]], specs: Sequence[PartitionSpec]) -> dict[Batch, list[Member]]:
    """Which stacks of matrices, with these shapes and places, can be worked on together."""
    found: dict[Batch, list[Member]] = {}
    for index, (shape, spec) in enumerate(zip(shapes, specs, strict=True)):
        places = [() if entry is None else (entry,) if isinstance(entry, str) else tuple(entry) for entry in spec]
        places += [()] * (len(shape) - len(places))
        (first, second), (rows, columns) = shape[-2:], places[-2:]
        turned = (first, rows) > (second, columns)  # a square matrix may lie either way
        batch = Batch(second, first, columns, rows) if turned else Batch(first, second, rows, columns)
        found.setdefault(batch, []).append(Member(index, turned))
    return found


def _orthogonalised(
    *stacks: jax.Array, batch: Batch, members: Sequence[Member], layout: Layout
) -> tuple[jax.Array, ...]:
    """The scaled updates for a device's own parts of these stacks.

    Every device that has a part of all matrices trades it for a share of whole matrices, and trades back afterwards, so
    that no product waits for another device. Where the devices do not divide the matrices, zeros fill up.
    """
    turned = [_turned(x, member.turned) for x, member in zip(stacks, members, strict=True)]
    x_nab = jnp.concatenate([x.reshape(-1, *x.shape[-2:]) for x in turned])
    n = len(x_nab)
    x_nab = jnp.pad(x_nab, ((0, -n % batch.parts(layout)), (0, 0), (0, 0)))
    sides = [(axis, names) for axis, names in ((1, batch.rows), (2, batch.columns)) if names]
    if sides:
        # XLA would trade the stacks themselves, in several memory layouts, which its own verifier then refuses.
        x_nab = jax.lax.optimization_barrier(x_nab)
    for axis, names in sides:
        x_nab = jax.lax.all_to_all(x_nab, names, split_axis=0, concat_axis=axis, tiled=True)
    x_nab = 0.2 * batch.many**0.5 * newton_schulz(x_nab)
    for axis, names in reversed(sides):
        x_nab = jax.lax.all_to_all(x_nab, names, split_axis=axis, concat_axis=0, tiled=True)
    ends = [math.prod(x.shape[:-2]) for x in turned]
    results = jnp.split(x_nab[:n], [sum(ends[: i + 1]) for i in range(len(ends) - 1)])
    return tuple(
        _turned(result.reshape(x.shape), member.turned)
        for result, x, member in zip(results, turned, members, strict=True)
    )


def _turned(matrices: jax.Array, turned: bool) -> jax.Array:
    return matrices.swapaxes(-1, -2) if turned else matrices


def newton_schulz(x_nab: jax.Array) -> jax.Array:
    """U S' Vᵀ for each matrix U S Vᵀ of a batch [n, a, b] with a <= b, where S' is near 1; zeros stay zeros."""
    first, second, third = COEFFICIENTS
    norm_n11 = jnp.sqrt(jnp.sum(x_nab * x_nab, axis=(1, 2), keepdims=True))

    def iterate(_: int, x_nab: jax.Array) -> jax.Array:
        gram_naa = x_nab @ x_nab.swapaxes(1, 2)
        return first * x_nab + (second * gram_naa + third * gram_naa @ gram_naa) @ x_nab

    return jax.lax.fori_loop(0, ITERATIONS, iterate, x_nab / jnp.maximum(norm_n11, _SMALLEST_NORM))

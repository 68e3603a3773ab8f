"""Which rows of a batch a process reads, and how they come to lie on the devices that they are for."""

import dataclasses
import math
from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property

import jax
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte_jax.config import TrainingConfig
from stellarbyte_jax.sharding import Layout


@dataclasses.dataclass(frozen=True)
class BatchPlacement:
    """Batches of B rows of T tokens, lying on a mesh; only the mesh says which rows a process needs.

    Where the mesh splits tokens or matrices over several processes, these read the same rows.
    """

    layout: Layout
    batch_size: int
    length: int

    @property
    def sharding(self) -> jax.sharding.NamedSharding:
        """Where each array of a batch lies."""
        return self.layout.sharding("batch", "length")

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The numbers of the rows that this process has devices for, ascending."""
        places = self.sharding.addressable_devices_indices_map((self.batch_size, self.length))
        spans = {index[0].indices(self.batch_size) for index in places.values() if index is not None}
        return tuple(sorted({row for span in spans for row in range(*span)}))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Global arrays [B, T], of which this process gives `rows` alone: [len(rows), T] each."""
        return {name: self._put(local) for name, local in batch.items()}

    def _put(self, local: np.ndarray) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[0].indices(self.batch_size)
            first = bisect_left(self.rows, start)
            return local[first : first + stop - start, index[1]]

        assert local.shape == (len(self.rows), self.length), (local.shape, len(self.rows), self.length)
        return jax.make_array_from_callback((self.batch_size, self.length), self.sharding, part)


def check_batch(training: TrainingConfig, length: int, layout: Layout) -> None:
    """Refuses micro-batches whose rows, and rows whose tokens, cannot be shared out evenly over the mesh.

    Raises:
        UserError: naming the sizes, and a batch size that would do.
    """
    check_micro_batch(training, {name: layout.mesh.shape[name] for name in layout.mesh_axes("batch")})
    if length % layout.parts("length"):
        axes = " x ".join(f"mesh.{name} {layout.mesh.shape[name]}" for name in layout.mesh_axes("length"))
        raise UserError(
            f"data.sequence_length {length} is not divisible by {axes}: use a multiple of {layout.parts('length')}"
        )


def check_micro_batch(training: TrainingConfig, axes: Mapping[str, int]) -> int:
    """Rows of a micro-batch that each part of the batch gets, when it is split over these mesh axes.

    Raises:
        UserError: they do not divide it.
    """
    steps, parts = training.gradient_accumulation_steps, math.prod(axes.values())
    micro_batch = training.batch_size // steps
    if micro_batch % parts:
        names = " x ".join(f"mesh.{name} {size}" for name, size in axes.items() if size > 1)
        raise UserError(
            f"training.batch_size {training.batch_size} makes micro-batches of {micro_batch} rows, which {names} "
            f"do not divide: use a multiple of {parts * steps}"
        )
    return micro_batch // parts

"""Decides which rows of a batch a process reads, and puts them onto its devices."""

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
    """How batches of B rows of T tokens lie on a mesh, which alone decides which rows a process needs.

    Processes that share the tokens of a row, or a matrix, read the same rows.
    """

    layout: Layout
    batch_size: int
    length: int

    @property
    def sharding(self) -> jax.sharding.NamedSharding:
        """The sharding of each array of a batch."""
        return self.layout.sharding("batch", "length")

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The numbers of the rows that lie on this process's devices, ascending."""
        places = self.sharding.addressable_devices_indices_map((self.batch_size, self.length))
        spans = {index[0].indices(self.batch_size) for index in places.values() if index is not None}
        return tuple(sorted({row for span in spans for row in range(*span)}))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The global arrays [B, T]; this process passes only its `rows` of them, [len(rows), T] each."""
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
    """Refuses a batch size or a sequence length that the mesh cannot split evenly.

    Raises:
        UserError: the mesh cannot; the error names the sizes and a number whose multiples would do.
    """
    check_micro_batch(training, {name: layout.mesh.shape[name] for name in layout.mesh_axes("batch")})
    lengths = {"data.sequence_length": length, "training.initial_sequence_length": training.initial_sequence_length}
    for field, tokens in lengths.items():
        if tokens is not None and tokens % layout.parts("length"):
            axes = " x ".join(f"mesh.{name} {layout.mesh.shape[name]}" for name in layout.mesh_axes("length"))
            raise UserError(f"{field} {tokens} is not divisible by {axes}: use a multiple of {layout.parts('length')}")


def check_micro_batch(training: TrainingConfig, axes: Mapping[str, int]) -> int:
    """The number of rows of a micro-batch that each part gets if the batch is split over these mesh axes.

    Raises:
        UserError: the axes do not split a micro-batch evenly.
    """
    steps, parts = training.gradient_accumulation_steps, math.prod(axes.values())
    sizes = {"training.batch_size": training.batch_size, "training.initial_batch_size": training.batch_growth.smallest}
    for field, rows in sizes.items():
        micro_batch = rows // steps
        if micro_batch % parts:
            names = " x ".join(f"mesh.{name} {size}" for name, size in axes.items() if size > 1)
            raise UserError(
                f"{field} {rows} makes micro-batches of {micro_batch} rows, which {names} "
                f"do not divide: use a multiple of {parts * steps}"
            )
    return training.batch_size // steps // parts

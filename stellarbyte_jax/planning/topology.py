"""How chips are wired, and what each mesh axis gets of the wires."""

import math
import re
from dataclasses import dataclass

from stellarbyte.errors import UserError
from stellarbyte_jax import sharding
from stellarbyte_jax.chips import CHIPS, Chip
from stellarbyte_jax.config import MeshConfig


@dataclass(frozen=True)
class Topology:
    """`slices` times `shape` chips of one kind: the sides of a torus for TPUs, (GPUs a node, nodes) for GPUs."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def size(self) -> int:
        """How many chips."""
        return math.prod(self.shape) * self.slices

    def __str__(self) -> str:
        slices = "" if self.slices == 1 else f"{self.slices} slices of "
        return f"{slices}{self.name}"

    @property
    def name(self) -> str:
        """One slice, as it is written."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads "v5e:16x16", "v5p:4x4x8" or "h100:8x16" (16 nodes of 8), of which there are `slices`.

    Raises:
        UserError: no such chip, or sides that it has not.
    """
    name, _, sides = text.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology {text} names no known chip: use {', '.join(CHIPS)}, as in v5e:16x16 or h100:8x4")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides) or sides.count("x") + 1 != chip.torus_axes:
        example = {"v4": "4x4x4", "v5p": "4x4x4", "h100": "8x4"}.get(name, "4x4")
        raise UserError(f"--topology {text} must give {chip.torus_axes} sides for {name}, as in {name}:{example}")
    shape = tuple(int(side) for side in sides.split("x"))
    if chip.platform == "gpu" and shape[0] > chip.largest:
        raise UserError(
            f"--topology {text} has {shape[0]} GPUs a node: there are at most {chip.largest}, as in {name}:8x4"
        )
    if chip.platform == "tpu" and math.prod(shape) > chip.largest:
        raise UserError(
            f"--topology {text} is {math.prod(shape)} chips, slices of {name} have at most {chip.largest}: use --slices"
        )
    if slices < 1 or (slices > 1 and chip.platform == "gpu"):
        raise UserError(f"--slices {slices} must be at least 1, and 1 for GPUs, whose nodes --topology counts")
    return Topology(chip, shape, slices)


def mesh_sizes(config: MeshConfig, topology: Topology) -> dict[str, int]:
    """Chips along each mesh axis, as sharding.mesh_sizes has them; raises as it does."""
    return sharding.mesh_sizes(config, topology.size, "chips", f"--topology {topology} has")


def axis_bandwidths(topology: Topology, sizes: dict[str, int]) -> dict[str, float]:
    """Bytes a second that a chip receives in an all-gather along each mesh axis of more than one chip.

    Axes take up the topology's sides from the last mesh axis on, as those that talk most get neighbours; a gather along
    several sides uses the links of all. Where one axis shares a side with another, or a side is no ring, bytes go one
    way only. Of the axis that crosses slices, each chip fetches its share from the others over the network, and the
    slice's chips exchange them.
    """
    crossing = sharding.axis_across_slices(sizes, topology.slices)
    inside = sizes | {crossing: sizes[crossing] // topology.slices}
    left, bandwidths = list(topology.shape), {}
    for name in reversed(sizes):
        needed, taken = inside[name], []
        for side, free in enumerate(left):
            share = math.gcd(needed, free)
            needed, left[side] = needed // share, free // share
            taken.append(share)
        if inside[name] > 1:
            bandwidths[name] = _bandwidth(topology, taken)
    if topology.slices > 1:
        network = topology.chip.network * inside[crossing]
        bandwidths[crossing] = min(network, bandwidths.get(crossing, network))
    return bandwidths


def _bandwidth(topology: Topology, taken: list[int]) -> float:
    chip = topology.chip
    if chip.platform == "gpu":
        in_node, nodes = taken
        # What comes from other nodes enters through all the node's ports, and goes round by NVLink.
        return chip.link if nodes == 1 else min(chip.link, chip.network * in_node)
    total = 0.0
    for share, side in zip(taken, topology.shape, strict=True):
        if share > 1:
            total += chip.link * (2 if share == side and side % chip.ring == 0 else 1)
    return total or chip.link

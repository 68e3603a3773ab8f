"""How chips are wired, and how much of the wires each mesh axis gets."""

import itertools
import math
import re
from dataclasses import dataclass

from stellarbyte.chips import CHIPS, Chip
from stellarbyte.errors import UserError
from stellarbyte_jax import sharding
from stellarbyte_jax.config import MeshConfig

# The slices are those of Google's pages of the chips, docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e: all slices
# of v5e and v6e; for v4 and v5p the slices smaller than a cube, and how far cubes go along each side (v4's pod is
# 16 x 16 x 16, v5p's largest slice 16 x 16 x 24). GPUs a node are as clouds and NVIDIA's boards have them; the limit of
# nodes is more than any cluster has.
_SLICES_2D: list[tuple[int, ...]] = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]
_SLICES_3D: list[tuple[int, ...]] = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
_LONGEST_SIDES = {"v4": (16, 16, 16), "v5p": (16, 16, 24)}
_GPUS_A_NODE = (1, 2, 4, 8)
_MOST_NODES = 16384


@dataclass(frozen=True)
class Topology:
    """`slices` times `shape` chips of one kind: the sides of a torus for TPUs, (GPUs a node, nodes) for GPUs."""

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def size(self) -> int:
        """The number of chips in all slices."""
        return math.prod(self.shape) * self.slices

    def __str__(self) -> str:
        slices = "" if self.slices == 1 else f"{self.slices} slices of "
        return f"{slices}{self.name}"

    @property
    def name(self) -> str:
        """One slice as --topology writes it, such as v5e:16x16."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads "v5e:16x16", "v5p:4x4x8" or "h100:8x16" (16 nodes of 8), of which there are `slices`.

    Raises:
        UserError: there is no such chip, or no slice with these sides.
    """
    name, _, sides = text.partition(":")
    if name not in CHIPS:
        raise UserError(f"--topology {text} names no known chip: use {', '.join(CHIPS)}, as in v5e:16x16 or h100:8x4")
    chip = CHIPS[name]
    if not re.fullmatch(r"[1-9][0-9]{0,8}(x[1-9][0-9]{0,8})*", sides) or sides.count("x") + 1 != chip.torus_axes:
        example = {"v4": "4x4x4", "v5p": "4x4x4", "h100": "8x4"}.get(name, "4x4")
        raise UserError(f"--topology {text} must give {chip.torus_axes} sides for {name}, as in {name}:{example}")
    shape = tuple(int(side) for side in sides.split("x"))
    if chip.platform == "gpu" and shape[0] > chip.largest:
        raise UserError(
            f"--topology {text} has {shape[0]} GPUs a node: there are at most {chip.largest}, as in {name}:8x4"
        )
    if chip.platform == "gpu" and (shape[0] not in _GPUS_A_NODE or shape[1] > _MOST_NODES):
        raise UserError(
            f"--topology {text} is no cluster that there is: nodes have 1, 2, 4 or 8 GPUs, and there are at most "
            f"{_MOST_NODES} of them, as in {name}:8x4"
        )
    if chip.platform == "tpu" and math.prod(shape) > chip.largest:
        raise UserError(
            f"--topology {text} is {math.prod(shape)} chips, slices of {name} have at most {chip.largest}: use --slices"
        )
    if chip.platform == "tpu" and shape not in (offered := _offered(chip)):
        first, second = sorted(offered, key=lambda other: _distance(shape, other))[:2]
        raise UserError(
            f"--topology {text} is no slice that Google offers: the nearest are {Topology(chip, first)} and "
            f"{Topology(chip, second)}"
        )
    if slices < 1 or (slices > 1 and chip.platform == "gpu"):
        raise UserError(f"--slices {slices} must be at least 1, and 1 for GPUs, whose nodes --topology counts")
    return Topology(chip, shape, slices)


def _offered(chip: Chip) -> list[tuple[int, ...]]:
    """The shapes of a TPU's slices."""
    if chip.torus_axes == 2:
        return _SLICES_2D
    # Larger slices are made of cubes of 4 x 4 x 4, up to the sides of a pod.
    sides = [range(4, most + 1, 4) for most in _LONGEST_SIDES[chip.name]]
    cubes = [shape for shape in itertools.product(*sides) if list(shape) == sorted(shape)]
    return _SLICES_3D + [shape for shape in cubes if math.prod(shape) <= chip.largest]


def _distance(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[float, float]:
    """How far a slice is from another: first by its chips, then by its sides."""
    sides = zip(sorted(shape), sorted(other), strict=True)
    return abs(math.log(math.prod(shape) / math.prod(other))), sum(abs(math.log(a / b)) for a, b in sides)


def mesh_sizes(config: MeshConfig, topology: Topology) -> dict[str, int]:
    """Chips along each mesh axis. Raises UserError as sharding.mesh_sizes does."""
    return sharding.mesh_sizes(config, topology.size, "chips", f"--topology {topology} has")


def axis_bandwidths(topology: Topology, sizes: dict[str, int]) -> dict[str, float]:
    """Mesh axis of more than one chip -> bytes a second that a chip receives in an all-gather along it.

    The last mesh axis takes sides of the topology first, because the axes that talk most get neighbours. A gather along
    several sides uses the links of all of them. If an axis shares a side with another axis, or the side is no ring,
    bytes go one way only. Along the axis that crosses slices, each chip fetches its share from the other slices over
    the network, and the chips of a slice exchange these shares.
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
        # Bytes from other nodes enter through all ports of the node and are passed on by NVLink.
        return chip.link if nodes == 1 else min(chip.link, chip.network * in_node)
    total = 0.0
    for share, side in zip(taken, topology.shape, strict=True):
        if share > 1:
            total += chip.link * (2 if share == side and side % chip.ring == 0 else 1)
    return total or chip.link

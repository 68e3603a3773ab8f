"""Counts what one chip multiplies, reads, writes and receives in a traced program whose arrays have been placed."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from stellarbyte_jax.planning.array_placement import Placement, place_of
from stellarbyte_jax.planning.jaxprs import KERNEL, equations, inner_jaxprs, shape_of
from stellarbyte_jax.planning.tiles import itemsize, padded_bytes

# The operations that read and write HBM; everything else is assumed to be fused into one of these.
_MATMULS = ("dot_general", "ragged_dot_general")
_COLLECTIVES = ("all_gather", "reduce_scatter", "psum", "all_to_all", "ragged_all_to_all", "ppermute")
# The operations whose result stands in memory; other results are computed where they are read.
_STANDING = (*_MATMULS, *_COLLECTIVES, KERNEL, "gather", "scatter", "scatter-add", "sort", "cumsum", "scan", "while")


def matmul_flops(jaxpr: Jaxpr, placement: Placement, choices: int) -> int:
    """FLOPs of the matmuls; those inside kernels are not counted.

    Tokens are assumed to choose experts evenly: a grouped matmul multiplies `choices` of the rows that it has room for.
    """
    matmuls = ((eqn, trips) for eqn, trips in equations(jaxpr) if eqn.primitive.name in _MATMULS)
    return sum(trips * _flops(eqn, placement, choices) for eqn, trips in matmuls)


def traffic_bytes(jaxpr: Jaxpr, placement: Placement) -> int:
    """Bytes that matmuls and kernels read and write: their operands and results."""
    total = 0
    for eqn, trips in equations(jaxpr):
        if eqn.primitive.name not in (*_MATMULS, KERNEL):
            continue
        shapes = [placement.local_shape(var) for var in (*eqn.invars, *eqn.outvars)]
        if eqn.primitive.name == "dot_general":
            shapes[:2] = placement.operand_shapes(eqn)
        for var, shape in zip((*eqn.invars, *eqn.outvars), shapes, strict=True):
            total += trips * math.prod(shape) * _itemsize(var)
    return total


def kernel_calls(jaxpr: Jaxpr) -> int:
    """The number of calls of Pallas kernels."""
    return sum(trips for eqn, trips in equations(jaxpr) if eqn.primitive.name == KERNEL)


def received_bytes(jaxpr: Jaxpr, placement: Placement, sizes: dict[str, int]) -> dict[str, float]:
    """Mesh axis -> bytes that the program's own collectives bring to a chip.

    A collective over several axes runs over one after the other. An operand that a shard_map expects less sharded than
    it is, is all-gathered first. Collectives that the compiler adds (for the layers' dense weights, and for tensor's
    sums) are not the program's own.
    """
    received: dict[str, float] = defaultdict(float)
    for eqn, trips in equations(jaxpr):
        if eqn.primitive.name in _COLLECTIVES:
            for axis, size in _collective_bytes(eqn, sizes).items():
                received[axis] += trips * size
        elif eqn.primitive.name == "shard_map":
            for axis, size in gathered_bytes(eqn, placement, sizes):
                received[axis] += trips * size
    return dict(received)


def gathered_bytes(eqn: JaxprEqn, placement: Placement, sizes: dict[str, int]) -> Iterator[tuple[str, int]]:
    """(mesh axis, bytes): what a chip receives before a shard_map that expects an operand less sharded than it is."""
    for var, spec in zip(eqn.invars, eqn.params["in_specs"], strict=True):
        place, wanted = placement.of(var), place_of(spec, len(shape_of(var)))
        if place is None or isinstance(var, Literal):
            continue
        here = math.prod(placement.local_shape(var)) * _itemsize(var)
        named = {name for axes in wanted for name in axes}
        for axis in (name for axes in place for name in axes if name not in named):
            yield axis, here * (sizes[axis] - 1)
            here *= sizes[axis]


def standing_bytes(jaxpr: Jaxpr, placement: Placement, pad: bool) -> int:
    """The most bytes of one chip's arrays that stand in memory at once, without inputs and without mere outputs."""
    timeline = _Timeline(placement, pad)
    timeline.go_through(jaxpr, [set()] * len(jaxpr.invars))
    change = [0] * (len(timeline.beside) + 1)
    for array, (step, size) in enumerate(timeline.made):
        change[step] += size
        change[timeline.last_read.get(array, step) + 1] -= size
    peak = now = 0
    for step, beside in enumerate(timeline.beside):
        now += change[step]
        peak = max(peak, now + beside)
    return peak


class _Timeline:
    """A program step by step: when each standing array is made and last read, and what a step needs beside them."""

    def __init__(self, placement: Placement, pad: bool) -> None:
        self._placement, self._pad = placement, pad
        self.beside: list[int] = []
        self.made: list[tuple[int, int]] = []  # (step, bytes) of each array
        self.last_read: dict[int, int] = {}

    def go_through(self, jaxpr: Jaxpr, inputs: list[set[int]]) -> list[set[int]]:
        """Adds a program's steps; returns for each output the standing arrays that it is computed from."""
        of: dict[Any, set[int]] = dict(zip(jaxpr.invars, inputs, strict=True))

        def sources(var: Any) -> set[int]:
            return set() if isinstance(var, Literal) else of.get(var, set())

        uses = Counter(var for eqn in jaxpr.eqns for var in eqn.invars if not isinstance(var, Literal))
        for eqn in jaxpr.eqns:
            name, inner = eqn.primitive.name, inner_jaxprs(eqn)
            read = set().union(*(sources(var) for var in eqn.invars))
            smaller = not inner and uses[eqn.outvars[0]] > 1 and self._is_smaller(eqn, read)
            if name in _STANDING or smaller or self._is_gathered(eqn):
                self.last_read |= dict.fromkeys(read, len(self.beside))
                for var in eqn.outvars:
                    of[var] = {len(self.made)}
                    self.made.append((len(self.beside), self._size(var, kernel=name == KERNEL)))
                looped = name in ("scan", "while")
                self.beside.append(standing_bytes(inner[-1], self._placement, self._pad) if looped else 0)
            elif inner and len(inner[-1].outvars) == len(eqn.outvars) and len(inner[-1].invars) <= len(eqn.invars):
                given = [sources(var) for var in eqn.invars[len(eqn.invars) - len(inner[-1].invars) :]]
                of.update(zip(eqn.outvars, self.go_through(inner[-1], given), strict=True))
            else:
                of.update(dict.fromkeys(eqn.outvars, read))
        return [sources(var) for var in jaxpr.outvars]

    def _is_smaller(self, eqn: JaxprEqn, read: set[int]) -> bool:
        """Whether the result of an elementwise operation takes less memory than the arrays that it is made of."""
        return len(read) > 1 and self._size(eqn.outvars[0]) < sum(self.made[array][1] for array in read)

    def _is_gathered(self, eqn: JaxprEqn) -> bool:
        """Whether a constraint asks for more of an array on each chip than the chip has."""
        if eqn.primitive.name != "sharding_constraint":
            return False
        return self._size(eqn.outvars[0]) > self._size(eqn.invars[0])

    def _size(self, var: Any, kernel: bool = False) -> int:
        # A kernel fixes the order of axes; elsewhere XLA finds an order that fills the tiles.
        return padded_bytes(self._placement.local_shape(var), var.aval.dtype, self._pad and kernel)


def _flops(eqn: JaxprEqn, placement: Placement, choices: int) -> int:
    if eqn.primitive.name == "dot_general":
        out = math.prod(placement.local_shape(eqn.outvars[0]))
        (contracted, _), _ = eqn.params["dimension_numbers"]
        lhs, _ = placement.operand_shapes(eqn)
        return 2 * out * math.prod(lhs[axis] for axis in contracted)
    # [M, D] x [E, D, F] or, for a gradient of the matrices, [M, D] x [M, F]: each row counts in one group only.
    M, D = placement.local_shape(eqn.invars[0])
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    F = placement.local_shape(eqn.outvars[0] if numbers.rhs_group_dimensions else eqn.invars[1])[-1]
    return 2 * min(M, choices) * D * F


def _collective_bytes(eqn: JaxprEqn, sizes: dict[str, int]) -> dict[str, float]:
    name, params = eqn.primitive.name, eqn.params
    axes: Any = params.get("axes", params.get("axis_name"))
    axes = axes if isinstance(axes, tuple) else (axes,)
    whole = float(max(_bytes(eqn.invars), _bytes(eqn.outvars)))
    received = {}
    for axis in (axis for axis in axes if sizes.get(axis, 1) > 1):
        others = (sizes[axis] - 1) / sizes[axis]
        # The larger side of a gather or a scatter passes through a chip, except the chip's own part.
        received[axis] = {"psum": 2 * others, "ppermute": 1.0}.get(name, others) * whole
        whole = whole if name in ("psum", "ppermute") else whole / sizes[axis]
    return received


def _bytes(variables: Sequence[Any]) -> int:
    return sum(math.prod(shape_of(var)) * _itemsize(var) for var in variables)


def _itemsize(var: Any) -> int:
    return itemsize(var.aval.dtype)

"""Counts what one chip multiplies, reads, writes and receives in a traced program whose arrays have been placed."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from stellarbyte_jax.planning.array_placement import Placement, place_of
from stellarbyte_jax.planning.jaxprs import KERNEL, equations, shape_of
from stellarbyte_jax.planning.tiles import itemsize

# The operations that read and write HBM; everything else is assumed to be fused into one of these.
MATMULS = ("dot_general", "ragged_dot_general")
COLLECTIVES = ("all_gather", "reduce_scatter", "psum", "all_to_all", "ragged_all_to_all", "ppermute")


def matmul_flops(jaxpr: Jaxpr, placement: Placement, choices: int) -> int:
    """FLOPs of the matmuls; those inside kernels are not counted.

    Tokens are assumed to choose experts evenly: a grouped matmul multiplies `choices` of the rows that it has room for.
    """
    matmuls = ((eqn, trips) for eqn, trips in equations(jaxpr) if eqn.primitive.name in MATMULS)
    return sum(trips * _flops(eqn, placement, choices) for eqn, trips in matmuls)


def traffic_bytes(jaxpr: Jaxpr, placement: Placement) -> int:
    """Bytes that matmuls and kernels read and write: their operands and results."""
    total = 0
    for eqn, trips in equations(jaxpr):
        if eqn.primitive.name not in (*MATMULS, KERNEL):
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
        if eqn.primitive.name in COLLECTIVES:
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

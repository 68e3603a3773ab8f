"""What a traced program multiplies, reads and writes."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

# What reads and writes HBM; everything else is taken to be fused into one of these.
_MATMULS = ("dot_general", "ragged_dot_general")
_KERNEL = "pallas_call"


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Every equation, those inside others too, of loops once."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs that an equation runs; of a choice by platform the last, which is that of accelerators."""
    found = []
    for value in eqn.params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        jaxprs = [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in values if isinstance(x, ClosedJaxpr | Jaxpr)]
        found += jaxprs[-1:] if eqn.primitive.name == "cond" else jaxprs
    return found


def loop_body(loop: JaxprEqn) -> Jaxpr:
    """What a scan does in each trip."""
    return loop.params["jaxpr"].jaxpr


def matmul_flops(jaxpr: Jaxpr) -> int:
    """FLOPs of the matmuls, kernels' own left out."""
    return sum(trips * _flops(eqn) for eqn, trips in _heavy(jaxpr) if eqn.primitive.name in _MATMULS)


def traffic_bytes(jaxpr: Jaxpr) -> int:
    """Bytes of the operands and results of matmuls and kernels."""
    total = 0
    for eqn, trips in _heavy(jaxpr):
        arrays: list[Any] = [var.aval for var in (*eqn.invars, *eqn.outvars) if hasattr(var.aval, "dtype")]
        total += trips * sum(aval.size * aval.dtype.itemsize for aval in arrays)
    return total


def kernel_calls(jaxpr: Jaxpr) -> int:
    """How often Pallas kernels are called."""
    return sum(trips for eqn, trips in _heavy(jaxpr) if eqn.primitive.name == _KERNEL)


def _heavy(jaxpr: Jaxpr, trips: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Matmuls and kernels, and how often each runs."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in (*_MATMULS, _KERNEL):
            yield eqn, trips
        else:
            times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
            for inner in inner_jaxprs(eqn):
                yield from _heavy(inner, trips * times)


def _flops(eqn: JaxprEqn) -> int:
    lhs: Any = eqn.invars[0].aval
    rhs: Any = eqn.invars[1].aval
    out: Any = eqn.outvars[0].aval
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
    else:
        numbers = eqn.params["ragged_dot_dimension_numbers"]
        (contracted, _), _ = numbers.dot_dimension_numbers
        if not numbers.rhs_group_dimensions:  # the groups' rows are what is summed over: each counts in one group only
            return 2 * lhs.size * rhs.shape[-1]
    return 2 * out.size * math.prod(lhs.shape[axis] for axis in contracted)

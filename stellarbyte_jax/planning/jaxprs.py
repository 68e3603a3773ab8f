"""Walks through traced programs."""

from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

KERNEL = "pallas_call"


def equations(jaxpr: Jaxpr, trips: int = 1) -> Iterator[tuple[JaxprEqn, int]]:
    """Every equation and how often it runs, nested ones included; the inside of a kernel is left out."""
    for eqn in jaxpr.eqns:
        yield eqn, trips
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for inner in inner_jaxprs(eqn):
            yield from equations(inner, trips * times)


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs that an equation runs; of a choice by platform, the last, which is that of accelerators."""
    if eqn.primitive.name == KERNEL:
        return []
    found = []
    for value in eqn.params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        jaxprs = [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in values if isinstance(x, ClosedJaxpr | Jaxpr)]
        found += jaxprs[-1:] if eqn.primitive.name == "cond" else jaxprs
    return found


def shape_of(var: Any) -> tuple[int, ...]:
    """The shape of a variable that is an array."""
    shape: tuple[int, ...] = var.aval.shape
    return shape


def loop_body(loop: JaxprEqn) -> Jaxpr:
    """What a scan does in each trip."""
    return loop.params["jaxpr"].jaxpr


def loop_inputs(loop: JaxprEqn) -> tuple[int, int]:
    """The numbers (constants, carried) of a scan's inputs, which come in this order; the scan slices all others.

    JAX's versions record these numbers in different ways, so they are derived from shapes: inputs that are sliced, and
    outputs that are stacked, have one axis more outside the scan than inside.
    """
    body = loop_body(loop)

    def alike(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(len(shape_of(a)) == len(shape_of(b)) for a, b in zip(outside, inside, strict=True))

    carried = alike(loop.outvars, body.outvars)
    return alike(loop.invars, body.invars) - carried, carried

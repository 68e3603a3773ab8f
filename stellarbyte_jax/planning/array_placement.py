"""Follows through a traced program, as XLA does, where its arrays lie on a mesh: from inputs and constraints on."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal
from jax.sharding import PartitionSpec

from stellarbyte_jax.planning.jaxprs import inner_jaxprs, loop_body, loop_inputs, shape_of

# For each axis of an array, the mesh axes that split it. A place is None while nothing has decided it.
Place = tuple[tuple[str, ...], ...]

_CALLS = ("jit", "closed_call", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call", "cond", "while")
_REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax", "argmin")


def place_of(spec: PartitionSpec, axes: int) -> Place:
    """The place that a spec gives an array with this number of axes."""
    entries = [() if entry is None else entry if isinstance(entry, tuple) else (entry,) for entry in spec]
    return tuple(tuple(entry) for entry in entries) + ((),) * (axes - len(entries))


class Placement:
    """The places of all variables of the programs that `follow` was given, on a mesh of `sizes`."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._places: dict[Any, Place | None] = {}

    def follow(self, jaxpr: Jaxpr, inputs: Sequence[Place | None]) -> list[Place | None]:
        """The places of the outputs, given those of the inputs. A loop's body is followed once."""
        self._places.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            places = self._outputs(eqn)
            self._places.update(zip(eqn.outvars, places, strict=True))
        return [self.of(var) for var in jaxpr.outvars]

    def of(self, var: Any) -> Place | None:
        """The place of a variable; None for a literal, and for what was made of nothing."""
        return None if isinstance(var, Literal) else self._places.get(var)

    def local_shape(self, var: Any) -> tuple[int, ...]:
        """The shape of the part of an array that one chip holds."""
        place = self.of(var)
        return shape_of(var) if place is None else self.share(shape_of(var), place)

    def share(self, shape: Sequence[int], place: Place) -> tuple[int, ...]:
        """The shape of one chip's part of an array of this shape at this place."""
        return tuple(size // self._parts(axes) for size, axes in zip(shape, place, strict=True))

    def operand_shapes(self, eqn: JaxprEqn) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of the two operands that one chip multiplies in a dot_general.

        If the right operand is sharded over a mesh axis that the left operand uses for another dimension, the right
        operand is gathered along it.
        """
        (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
        lhs, rhs = (self._known(var) for var in eqn.invars)
        taken = {name for axes in lhs for name in axes}
        paired = dict(zip((*right, *right_batch), (*left, *left_batch), strict=True))
        kept_left, kept_right = list(lhs), []
        for axis, names in enumerate(rhs):
            if axis in paired:
                shared = tuple(name for name in names if name in lhs[paired[axis]])
                kept_left[paired[axis]] = shared
                kept_right.append(shared)
            else:
                kept_right.append(tuple(name for name in names if name not in taken))
        shapes = [shape_of(var) for var in eqn.invars]
        return self.share(shapes[0], tuple(kept_left)), self.share(shapes[1], tuple(kept_right))

    def _parts(self, axes: Iterable[str]) -> int:
        return math.prod(self._sizes[name] for name in axes)

    def _known(self, var: Any) -> Place:
        return self.of(var) or ((),) * len(shape_of(var))

    def _outputs(self, eqn: JaxprEqn) -> list[Place | None]:
        name, params = eqn.primitive.name, eqn.params
        places = [self.of(var) for var in eqn.invars]
        shapes = [shape_of(var) for var in eqn.invars]
        outs = [shape_of(var) for var in eqn.outvars]
        if name == "sharding_constraint":
            self._learn(eqn.invars[0], place_of(params["sharding"].spec, len(outs[0])))
            return [place_of(params["sharding"].spec, len(outs[0]))]
        if name == "shard_map":
            for var, spec in zip(eqn.invars, params["in_specs"], strict=True):
                self._learn(var, place_of(spec, len(shape_of(var))))
            self.follow(params["jaxpr"], [((),) * len(shape_of(var)) for var in params["jaxpr"].invars])
            return [place_of(spec, len(shape)) for spec, shape in zip(params["out_specs"], outs, strict=True)]
        if name == "scan":
            constants, carried = loop_inputs(eqn)
            apart = constants + carried
            sliced = [None if place is None else place[1:] for place in places[apart:]]
            found = self.follow(loop_body(eqn), places[:apart] + sliced)
            stacked = [None if place is None else ((), *place) for place in found[carried:]]
            return found[:carried] + stacked
        if name in _CALLS:
            inner = inner_jaxprs(eqn)[-1]
            given = eqn.invars[len(places) - len(inner.invars) :]
            found = self.follow(inner, [self.of(var) for var in given])
            for var, inside in zip(given, inner.invars, strict=True):
                place = self.of(inside)
                if place is not None:
                    self._learn(var, place)
            return found
        if name == "dot_general":
            return [self._product(eqn)]
        first = places[0] if places else None
        if first is not None and name == "transpose":
            return [tuple(first[axis] for axis in params["permutation"])]
        if first is not None and name == "reshape":
            return [self._reshaped(first, shapes[0], outs[0])]
        if first is not None and name in ("squeeze", *_REDUCTIONS):
            gone = params["dimensions" if name == "squeeze" else "axes"]
            return [tuple(axes for axis, axes in enumerate(first) if axis not in gone)] * len(outs)
        if first is not None and name == "broadcast_in_dim":
            spread: list[tuple[str, ...]] = [()] * len(outs[0])
            for axes, axis, size in zip(first, params["broadcast_dimensions"], shapes[0], strict=True):
                spread[axis] = axes if size == outs[0][axis] else ()
            return [tuple(spread)]
        joined = [self._joined(shape, places, shapes) for shape in outs]
        for var, shape in zip(eqn.invars, shapes, strict=True):
            if joined[0] is not None and shape == outs[0]:
                self._learn(var, joined[0])
        return joined

    def _learn(self, var: Any, place: Place) -> None:
        """Takes a place for a variable that has none: a value made of nothing is made where it is needed."""
        if not isinstance(var, Literal) and self._places.get(var) is None:
            self._places[var] = place

    def _product(self, eqn: JaxprEqn) -> Place:
        (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
        lhs, rhs = (self._known(var) for var in eqn.invars)
        batch = [lhs[i] or rhs[j] for i, j in zip(left_batch, right_batch, strict=True)]
        free = [lhs[axis] for axis in range(len(lhs)) if axis not in (*left, *left_batch)]
        free += [rhs[axis] for axis in range(len(rhs)) if axis not in (*right, *right_batch)]
        return _without_repeats(batch + free)

    def _reshaped(self, place: Place, shape: Sequence[int], new_shape: Sequence[int]) -> Place:
        """The place after a reshape. If axes are joined or split, their mesh axes go to the first of the new axes."""
        new: list[tuple[str, ...]] = [()] * len(new_shape)
        old = axis = 0
        while old < len(shape) and axis < len(new_shape):
            names, before, after, first = place[old], shape[old], new_shape[axis], axis
            old, axis = old + 1, axis + 1
            while before != after:
                if before < after:
                    names, before, old = names + place[old], before * shape[old], old + 1
                else:
                    after, axis = after * new_shape[axis], axis + 1
            outermost = next((i for i in range(first, axis) if new_shape[i] > 1), first)
            new[outermost] = names if new_shape[outermost] % self._parts(names) == 0 else ()
        return tuple(new)

    def _joined(
        self, shape: Sequence[int], places: Sequence[Place | None], shapes: Sequence[Sequence[int]]
    ) -> Place | None:
        """The place of an elementwise result: on each axis, that of the first operand which has one there."""
        known = [
            (place, operand)
            for place, operand in zip(places, shapes, strict=True)
            if place is not None and len(operand) == len(shape)
        ]
        if not known:
            return None
        axes = []
        for axis, size in enumerate(shape):
            said = (place[axis] for place, operand in known if place[axis] and operand[axis] > 1)
            names = next(said, ())
            axes.append(names if size % self._parts(names) == 0 else ())
        return _without_repeats(axes)


def _without_repeats(axes: Iterable[tuple[str, ...]]) -> Place:
    taken: set[str] = set()
    place = []
    for names in axes:
        place.append(tuple(name for name in names if name not in taken))
        taken.update(names)
    return tuple(place)

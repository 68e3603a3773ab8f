"""Predicts which arrays of a traced program stand in one chip's memory at once."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn, Literal

from stellarbyte_jax.planning.array_placement import Placement
from stellarbyte_jax.planning.chip_work import COLLECTIVES, MATMULS
from stellarbyte_jax.planning.jaxprs import KERNEL, inner_jaxprs
from stellarbyte_jax.planning.tiles import padded_bytes

# The operations whose result stands in memory; other results are computed where they are read.
_STANDING = (*MATMULS, *COLLECTIVES, KERNEL, "gather", "scatter", "scatter-add", "sort", "cumsum", "scan", "while")


def standing_bytes(jaxpr: Jaxpr, placement: Placement, pad: bool) -> int:
    """The most bytes of one chip's arrays that stand in memory at once, without inputs and without mere outputs."""
    timeline = _Timeline(placement, pad, turns=False)
    timeline.go_through(jaxpr, [set()] * len(jaxpr.invars))
    return timeline.most(range(len(timeline.steps)))


def standing_in_layer(
    backward: Jaxpr, carried: range, kept: Collection[int], placement: Placement, *, again: bool, pad: bool
) -> int:
    """The most bytes that stand at once in a trip of the reverse scan, beside the stacks of what layers keep.

    The order is that in which the TPU compiler was seen to schedule (libtpu 0.0.52). It hurries to what the layer
    before waits for and leaves gradients of weights to the end, so that until then all stands that they are computed
    from. It turns the gradient of rotated queries back at once, while keys and values still wait for theirs; in a layer
    that computes all again, it does so after the gradients of weights, when less stands.

    Args:
        backward: the body of the scan.
        carried: the indices, among the inputs, of what a layer hands on; the outputs begin with it.
        kept: the indices of the inputs that are slices of kept arrays of tokens.
        again: whether a layer keeps its input alone, and computes all again.
        pad: whether arrays are stored in a TPU's tiles.
    """
    timeline = _Timeline(placement, pad, turns=pad and not again)
    inputs: list[set[int]] = [set() for _ in backward.invars]
    for index in (*carried, *kept):
        inputs[index] = {timeline.given(backward.invars[index], copied=index in kept)}
    outputs = timeline.go_through(backward, inputs)
    first = timeline.steps_for(set().union(*outputs[: len(carried)]))
    last = [step for step in range(len(timeline.steps)) if step not in first]
    return timeline.most_where_fused([*(sorted(first) if again else first), *last])


@dataclass
class _Array:
    size: int
    step: int | None  # the step that makes it; None of an input
    copied: bool = False  # whether it is a slice, which is copied out of its stack only if it is read more than once
    tiled: bool = False  # whether a kernel fixes its order of axes


class _Step(NamedTuple):
    reads: set[int]
    makes: list[int]
    beside: int  # bytes that it needs beside what it reads and makes
    elementwise: bool


class _Timeline:
    """A program step by step: the standing arrays that each step reads and makes.

    turns: whether an array stands whose halves change places, as rotated queries and keys do.
    """

    def __init__(self, placement: Placement, pad: bool, *, turns: bool) -> None:
        self._placement, self._pad, self._turns = placement, pad, turns
        self.steps: list[_Step] = []
        self.arrays: list[_Array] = []
        self._operands: dict[tuple[frozenset[int], int], set[int]] = {}

    def given(self, var: Any, *, copied: bool) -> int:
        """Adds an input that stands in memory; returns its number."""
        self.arrays.append(_Array(self._size(var), None, copied))
        return len(self.arrays) - 1

    def steps_for(self, arrays: set[int]) -> dict[int, None]:
        """The steps that these arrays need, each after those that it needs itself; what is made last goes first."""
        order: dict[int, None] = {}

        def visit(array: int) -> None:
            step = self.arrays[array].step
            if step is not None and step not in order:
                for read in sorted(self.steps[step].reads, reverse=True):
                    visit(read)
                order[step] = None

        for array in sorted(arrays, reverse=True):
            visit(array)
        return order

    def most(self, order: Sequence[int]) -> int:
        """The most bytes that stand at once if the steps run in this order."""
        position = {step: at for at, step in enumerate(order)}
        readers: dict[int, list[int]] = defaultdict(list)
        for step, at in position.items():
            for array in self.steps[step].reads:
                readers[array].append(at)
        change = [0] * (len(order) + 1)
        for number, held in enumerate(self.arrays):
            read = readers[number]
            if held.copied and len(read) < 2:
                continue
            start = position[held.step] if held.step is not None else min(read) if held.copied else 0
            change[start] += held.size
            change[max(read, default=start) + 1] -= held.size
        standing = itertools.accumulate(change)
        return max((now + self.steps[step].beside for step, now in zip(order, standing, strict=False)), default=0)

    def most_where_fused(self, order: Sequence[int]) -> int:
        """The same, if elementwise results are computed wherever they are read, unless that takes more memory."""
        least = self.most(order)
        for step in reversed(order):
            if self.steps[step].elementwise:
                before = list(self.steps), list(self.arrays)
                self._fuse(step)
                if (most := self.most(order)) <= least:
                    least = most
                else:
                    self.steps, self.arrays = before
        return least

    def go_through(self, jaxpr: Jaxpr, inputs: list[set[int]]) -> list[set[int]]:
        """Adds a program's steps; returns for each output the standing arrays that it is computed from."""
        of: dict[Any, set[int]] = dict(zip(jaxpr.invars, inputs, strict=True))

        def sources(var: Any) -> set[int]:
            return set() if isinstance(var, Literal) else of.get(var, set())

        uses = Counter(var for eqn in jaxpr.eqns for var in eqn.invars if not isinstance(var, Literal))
        for eqn in jaxpr.eqns:
            name, inner = eqn.primitive.name, inner_jaxprs(eqn)
            turned = name == "split" and self._turns
            if name == KERNEL or turned:
                for var in eqn.invars:
                    self._lay_out(var, sources(var), of, tiled=name == KERNEL)
            read = set().union(*(sources(var) for var in eqn.invars))
            smaller = not inner and self._is_smaller(eqn, read, uses[eqn.outvars[0]])
            if name in _STANDING or turned or smaller or self._is_gathered(eqn):
                looped = name in ("scan", "while")
                beside = standing_bytes(inner[-1], self._placement, self._pad) if looped else 0
                made = self._add(eqn.outvars, _Step(read, [], beside, smaller and name != "slice"), name == KERNEL)
                of.update(zip(eqn.outvars, ({array} for array in made), strict=True))
            elif inner and len(inner[-1].outvars) == len(eqn.outvars) and len(inner[-1].invars) <= len(eqn.invars):
                given = [sources(var) for var in eqn.invars[len(eqn.invars) - len(inner[-1].invars) :]]
                of.update(zip(eqn.outvars, self.go_through(inner[-1], given), strict=True))
            else:
                of.update(dict.fromkeys(eqn.outvars, read))
        return [sources(var) for var in jaxpr.outvars]

    def _add(self, made: Sequence[Any], step: _Step, tiled: bool) -> list[int]:
        for var in made:
            step.makes.append(len(self.arrays))
            self.arrays.append(_Array(self._size(var, tiled), len(self.steps), tiled=tiled))
        self.steps.append(step)
        return step.makes

    def _fuse(self, step: int) -> None:
        """Lets all that read this step's array read what it is made of instead."""
        (array,) = self.steps[step].makes
        sources = self.steps[step].reads
        for number, other in enumerate(self.steps):
            if array in other.reads:
                self.steps[number] = other._replace(reads=other.reads - {array} | sources)
        self.steps[step] = _Step(set(), [], 0, elementwise=False)
        self.arrays[array] = _Array(0, step)

    def _lay_out(self, var: Any, read: set[int], of: dict[Any, set[int]], *, tiled: bool) -> None:
        """Makes an array stand; of a kernel in the order of axes, and the tiles, that it asks for."""
        size = self._size(var, tiled)
        if not read or any(self.arrays[array].tiled and self.arrays[array].size == size for array in read):
            return
        key = frozenset(read), size
        if key not in self._operands:
            self._operands[key] = set(self._add([var], _Step(read, [], 0, elementwise=False), tiled))
        of[var] = self._operands[key]

    def _is_smaller(self, eqn: JaxprEqn, read: set[int], uses: int) -> bool:
        """Whether the result of an elementwise operation takes less memory than the arrays that it is made of.

        A slice must be less than half, because one operation cuts all slices of an array.
        """
        size, sources = self._size(eqn.outvars[0]), sum(self.arrays[array].size for array in read)
        return 2 * size < sources if eqn.primitive.name == "slice" else uses > 1 and len(read) > 1 and size < sources

    def _is_gathered(self, eqn: JaxprEqn) -> bool:
        """Whether a constraint asks for more of an array on each chip than the chip has."""
        if eqn.primitive.name != "sharding_constraint":
            return False
        return self._size(eqn.outvars[0]) > self._size(eqn.invars[0])

    def _size(self, var: Any, tiled: bool = False) -> int:
        # A kernel fixes the order of axes; elsewhere XLA finds an order that fills the tiles.
        return padded_bytes(self._placement.local_shape(var), var.aval.dtype, self._pad and tiled)

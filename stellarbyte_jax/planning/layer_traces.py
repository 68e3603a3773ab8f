"""Reads from the train step's jaxpr what layers keep for their backward pass, compute, read, write and send."""

import dataclasses
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from stellarbyte_jax.config import RunConfig
from stellarbyte_jax.model.remat import KEEPS_INPUT
from stellarbyte_jax.planning.array_placement import Placement
from stellarbyte_jax.planning.chip_work import (
    gathered_bytes,
    kernel_calls,
    matmul_flops,
    received_bytes,
    traffic_bytes,
)
from stellarbyte_jax.planning.jaxprs import KERNEL, equations, inner_jaxprs, loop_body, loop_inputs, shape_of
from stellarbyte_jax.planning.program import LayerLoops, layer_loops, layout_of
from stellarbyte_jax.planning.standing_arrays import standing_bytes, standing_in_layer
from stellarbyte_jax.planning.tiles import padded_bytes


@dataclass(frozen=True)
class SavedByLayers:
    """Bytes and FLOPs of one chip for one micro-batch, all layers together.

    activations: kept bytes that depend on the tokens and stay on the chip.
    offloaded: kept bytes that depend on the tokens and go to the host's memory.
    weights: kept bytes that depend on parameters alone, such as copies in the compute dtype.
    working: the most bytes that stand at once in one layer's backward pass, beside what is kept.
    exchanged: the part of these where chips exchange tokens, keys or experts.
    traffic: bytes that matmuls and kernels read and write, forward and backward.
    flops: FLOPs of the matmuls, remat's included.
    kernels_again: how often remat calls a layer's attention kernel again.
    received: mesh axis -> bytes that the layers' own collectives bring to the chip.
    """

    activations: int
    offloaded: int
    weights: int
    working: int
    exchanged: int
    traffic: int
    flops: int
    kernels_again: int
    received: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kept:
    activations: int
    offloaded: int
    weights: int
    of_tokens: frozenset[Any]  # the forward scan's outputs that depend on the tokens


class LayerTraces:
    """Traces a run's layers for one mesh after the other; what meshes have in common is traced once.

    The traced program is the trainer's own step, so that switches of the architecture, kernels, the exchanges of
    experts and context, and remat policies are counted without code of their own here.
    """

    def __init__(self, config: RunConfig, platform: str) -> None:
        self._config, self._platform = config, platform
        self._traced: dict[Any, SavedByLayers] = {}
        self._calls: dict[Any, int] = {}

    def saved(self, remat: str, sizes: dict[str, int], rows: int) -> SavedByLayers:
        """What layers keep and do for `rows` rows a chip on a mesh of `sizes`.

        Raises:
            UserError: the mesh does not divide a parameter, or the kernel cannot do what the config asks.
        """
        # Along data and fsdp a layer's own program exchanges nothing but experts' tokens, (n - 1) / n of them over n
        # chips: two chips are traced, and the amount is scaled.
        few = sizes | {"data": 1, "fsdp": 1}
        if self._config.model.num_experts and sum(sizes.values()) > len(sizes):
            few |= {"data": 2, "fsdp": min(2, sizes["fsdp"])}
        grown = self._trace(remat, few, 1)
        if rows > 1:
            grown = _along_a_line(grown, self._trace(remat, few, 2), rows)
        spread = layout_of(self._config, few).parts("hidden"), layout_of(self._config, sizes).parts("hidden")
        received = {
            axis: amount * 2 * (sizes[axis] - 1) / sizes[axis] if axis in ("data", "fsdp") else amount
            for axis, amount in grown.received.items()
        }
        return dataclasses.replace(grown, weights=grown.weights * spread[0] // spread[1], received=received)

    def _trace(self, remat: str, sizes: dict[str, int], rows: int) -> SavedByLayers:
        key = remat, tuple(sizes.values()), rows
        if key not in self._traced:
            loops = layer_loops(self._config, sizes, rows, self._platform, remat)
            if remat != "none":
                self._trace("none", sizes, rows)
            self._calls[key] = sum(kernel_calls(body) for body in loops.bodies)
            again = self._calls[key] - self._calls["none", *key[1:]]
            self._traced[key] = self._study(loops, sizes, rows, remat, again)
        return self._traced[key]

    def _study(
        self, loops: LayerLoops, sizes: dict[str, int], rows: int, remat: str, kernels_again: int
    ) -> SavedByLayers:
        layers, bodies, placement = self._config.model.num_hidden_layers, loops.bodies, loops.placement
        pad = self._platform == "tpu"
        length = self._config.data.sequence_length // layout_of(self._config, sizes).parts("length")
        choices = rows * length * self._config.model.num_experts_per_tok
        kept = _kept(loops, pad=pad)
        exchanged = _exchanged(bodies[1], placement, sizes, pad)
        received: dict[str, float] = defaultdict(float)
        for body in bodies:
            for axis, amount in received_bytes(body, placement, sizes).items():
                received[axis] += layers * amount
        return SavedByLayers(
            activations=kept.activations - kept.offloaded,
            offloaded=kept.offloaded,
            weights=kept.weights,
            working=max(0, _working(loops, kept.of_tokens, again=remat in KEEPS_INPUT, pad=pad) - exchanged),
            exchanged=exchanged,
            traffic=layers * sum(traffic_bytes(body, placement) for body in bodies),
            flops=layers * sum(matmul_flops(body, placement, choices) for body in bodies),
            kernels_again=kernels_again,
            received=dict(received),
        )


def _along_a_line(one: SavedByLayers, two: SavedByLayers, rows: int) -> SavedByLayers:
    """The figures of `rows` rows, from those of one and two: each is a constant part and a part for every row."""

    def grown(a: Any, b: Any) -> Any:
        return a + (b - a) * (rows - 1)

    received = {axis: grown(amount, two.received[axis]) for axis, amount in one.received.items()}
    numbers = {
        field.name: grown(getattr(one, field.name), getattr(two, field.name))
        for field in dataclasses.fields(one)
        if field.name not in ("received", "kernels_again")
    }
    return SavedByLayers(**numbers, kernels_again=one.kernels_again, received=received)


def _exchanged(backward: Jaxpr, placement: Placement, sizes: dict[str, int], pad: bool) -> int:
    """Bytes that stand in a layer's backward pass where chips exchange more than sums of gradients."""
    most = 0
    for eqn, _ in equations(backward):
        if eqn.primitive.name == "shard_map":
            sent = received_bytes(eqn.params["jaxpr"], placement, sizes)
            standing = standing_bytes(eqn.params["jaxpr"], placement, pad) if sent else 0
            most = max(most, standing + sum(amount for _, amount in gathered_bytes(eqn, placement, sizes)))
    return most


def _kept(loops: LayerLoops, *, pad: bool) -> _Kept:
    """What the forward scan keeps for the reverse scan; XLA keeps equal values once."""
    forward, backward, placement = loops.forward, loops.backward, loops.placement
    body = loop_body(forward)
    consts, carry = loop_inputs(forward)
    xs: list[Any] = body.invars[consts + carry :]
    parameters = {id(var) for var in xs if jnp.issubdtype(var.aval.dtype, jnp.floating) and var.aval.ndim}
    number = _value_numbers(body, placement)
    of_tokens = _depends_on(body, [var for var in body.invars if id(var) not in parameters])
    uses, made_by = _uses(backward), {var: eqn for eqn in body.eqns for var in eqn.outvars}
    seen, kept, bytes_of = set(), set(), {"activations": 0, "offloaded": 0, "weights": 0}
    for inner, outer in zip(body.outvars[carry:], forward.outvars[carry:], strict=True):
        if isinstance(inner, Literal):
            continue
        if inner in of_tokens:
            kept.add(outer)
        if number[inner] in seen:
            continue
        seen.add(number[inner])
        aval: Any = outer.aval
        dtype, used_by = aval.dtype, uses.get(outer, set())
        if pad and dtype == jnp.float32 and used_by == {"dot_general"}:
            dtype = jnp.bfloat16  # a TPU's matmuls round their inputs to it, so XLA keeps no more
        # A kernel fixes the order of axes; elsewhere XLA finds an order that fills the tiles. It does not see through a
        # reshape into groups of heads, and copies each layer's slice for the kernel.
        free = KERNEL not in used_by or _is_regrouped(made_by.get(inner))
        size = padded_bytes(placement.local_shape(outer), dtype, pad, free=free)
        bytes_of["activations" if inner in of_tokens else "weights"] += size
        if aval.memory_space == jax.memory.Space.Host:
            bytes_of["offloaded"] += size
    return _Kept(**bytes_of, of_tokens=frozenset(kept))


def _is_regrouped(eqn: JaxprEqn | None) -> bool:
    """Whether a reshape makes other axes; those of length 1 do not count."""
    if eqn is None or eqn.primitive.name != "reshape":
        return False
    before, after = ([side for side in shape_of(var) if side != 1] for var in (eqn.invars[0], eqn.outvars[0]))
    return before != after


def _working(loops: LayerLoops, of_tokens: Collection[Any], *, again: bool, pad: bool) -> int:
    """The most bytes that stand at once in a layer's backward pass, beside what is kept."""
    consts, carry = loop_inputs(loops.backward)
    kept = {i for i, var in enumerate(loops.backward.invars) if not isinstance(var, Literal) and var in of_tokens}
    carried = range(consts, consts + carry)
    return standing_in_layer(loops.bodies[1], carried, kept, loops.placement, again=again, pad=pad)


def _uses(backward: JaxprEqn) -> dict[Any, set[str]]:
    """The operations that read each input of the reverse scan; changes of shape are looked through."""
    body = loop_body(backward)
    reads: dict[Any, set[str]] = defaultdict(set)
    for eqn in reversed(body.eqns):
        inner = {e.primitive.name for jaxpr in inner_jaxprs(eqn) for e, _ in equations(jaxpr)}
        names = {KERNEL} if KERNEL in inner else {eqn.primitive.name}
        if eqn.primitive.name in ("reshape", "transpose", "squeeze"):
            names = reads[eqn.outvars[0]]
        for var in eqn.invars:
            if not isinstance(var, Literal):
                reads[var] |= names
    pairs = zip(backward.invars, body.invars, strict=True)
    return {outer: reads[inner] for outer, inner in pairs if not isinstance(outer, Literal)}


def _value_numbers(jaxpr: Jaxpr, placement: Placement) -> dict[Any, int]:
    """A number for each value; values that the same operation made of the same values have the same number."""
    number: dict[Any, int] = {var: index for index, var in enumerate((*jaxpr.constvars, *jaxpr.invars))}
    known: dict[Any, int] = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "sharding_constraint" and placement.of(eqn.invars[0]) == placement.of(eqn.outvars[0]):
            number[eqn.outvars[0]] = number[eqn.invars[0]]
            continue
        of = tuple(str(var) if isinstance(var, Literal) else number[var] for var in eqn.invars)
        same = not inner_jaxprs(eqn) and not eqn.effects
        for place, var in enumerate(eqn.outvars):
            key = (eqn.primitive, str(eqn.params), of, place) if same else object()
            number[var] = known.setdefault(key, len(number) + len(known))
    return number


def _depends_on(jaxpr: Jaxpr, sources: list[Any]) -> set[Any]:
    dependent = set(sources)
    for eqn in jaxpr.eqns:
        if any(not isinstance(var, Literal) and var in dependent for var in eqn.invars):
            dependent.update(eqn.outvars)
    return dependent

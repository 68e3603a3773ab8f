"""What the layers keep between their forward and backward passes, read from the train step's jaxpr."""

import dataclasses
import functools
import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal

from stellarbyte_jax.config import ByteConfig, RunConfig
from stellarbyte_jax.errors import UserError
from stellarbyte_jax.model.flops import kernel_flops
from stellarbyte_jax.planning.jaxprs import (
    equations,
    inner_jaxprs,
    kernel_calls,
    loop_body,
    matmul_flops,
    traffic_bytes,
)
from stellarbyte_jax.planning.program import abstract_batch, kernel_of
from stellarbyte_jax.training.optimizer import make_optimizer
from stellarbyte_jax.training.state import abstract_model, init_state
from stellarbyte_jax.training.step import make_train_step

# A TPU's vectors: the last axis of an array in HBM is filled up to 128 lanes, the one before to 8 rows.
_LANES, _ROWS = 128, 8


@dataclass(frozen=True)
class SavedByLayers:
    """Bytes on one chip for one micro-batch, all layers together.

    activations: what depends on the tokens. weights: what depends on parameters alone, such as copies in the compute
    dtype, before fsdp divides it. working: what one layer's backward pass works out again, all at hand at once.
    traffic: what matmuls and kernels read and write, forward and backward. recomputed: FLOPs of matmuls and kernels
    that remat does a second time.
    """

    activations: int
    weights: int
    working: int
    traffic: int
    recomputed: int


def saved_by_layers(config: RunConfig, rows: int, tensor: int, platform: str) -> SavedByLayers:
    """Traces the train step for one chip's `rows` rows and 1/`tensor` of each layer; nothing is compiled.

    It is the trainer's own step: switches of the architecture, kernels and remat policies count by themselves.

    Raises:
        UserError: `tensor` does not divide heads or feed-forward channels, or the kernel cannot do what is asked.
    """
    pad, layers = platform == "tpu", config.model.num_hidden_layers
    forward, backward = _loops(config, rows, tensor, platform, config.training.remat)
    model, length = config.model, config.data.sequence_length
    residual = {(rows, length, model.hidden_size), (rows, length, 1)} if length % tensor == 0 else set()
    kept = functools.partial(_kept, pad=pad, residual=residual, tensor=tensor)
    activations, weights = kept(forward, backward)
    everything, again = activations, 0
    if config.training.remat != "none":
        plain = _loops(config, rows, tensor, platform, "none")
        everything, _ = kept(*plain)
        again = sum(matmul_flops(loop_body(eqn)) for eqn in (forward, backward))
        again -= sum(matmul_flops(loop_body(eqn)) for eqn in plain)
        calls = kernel_calls(loop_body(backward)) - kernel_calls(loop_body(plain[1]))
        again += calls * kernel_flops(config.model, rows, config.data.sequence_length) // tensor
    traffic = layers * sum(traffic_bytes(loop_body(eqn)) for eqn in (forward, backward))
    working = max(0, everything - activations) // layers
    return SavedByLayers(activations, weights, working, traffic, layers * again)


def _loops(config: RunConfig, rows: int, tensor: int, platform: str, remat: str) -> tuple[JaxprEqn, JaxprEqn]:
    """The train step's scans over layers, forward and backward."""
    kernel, length = kernel_of(config, platform), config.data.sequence_length
    if kernel == "cudnn":
        # cuDNN is not here to be asked. It keeps what splash keeps, which wants a multiple of 128 tokens.
        kernel, length = "splash", _up(length, _LANES)
    model = _part_of_model(config.model, tensor)
    optimizer = make_optimizer(config.optimizer, config.training.max_steps)
    graphdef, _ = abstract_model(model, config.training.dtype, kernel, platform=platform, remat=remat)
    state = jax.eval_shape(lambda: init_state(model, optimizer, config.seed))
    step = make_train_step(graphdef, optimizer, seed=config.seed)
    jaxpr = jax.make_jaxpr(step)(state, abstract_batch(rows, length), {}).jaxpr
    loops = [eqn for eqn in equations(jaxpr) if _is_loop(eqn, config.model.num_hidden_layers)]
    forward = next(eqn for eqn in loops if not eqn.params["reverse"])
    return forward, next(eqn for eqn in loops if eqn.params["reverse"])


def padded_bytes(shape: tuple[int, ...], dtype: Any, pad: bool = True, *, free: bool = False) -> int:
    """Bytes of an array in HBM; with `pad` in a TPU's tiles of 8 × 128, axes of 1 left out of them.

    `free`: the compiler may store the last two axes the other way round, as it does with parameters.
    """
    sides = [side for side in shape if side != 1]
    size = math.prod(sides) * jnp.dtype(dtype).itemsize
    if not pad or len(sides) < 2:
        return size
    rows, lanes = sides[-2:]
    tilings = [_up(rows, _ROWS) * _up(lanes, _LANES), _up(rows, _LANES) * _up(lanes, _ROWS)]
    return size // (rows * lanes) * (min(tilings) if free else tilings[0])


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _part_of_model(config: ByteConfig, tensor: int) -> ByteConfig:
    """The model whose whole layers are what one chip holds of this one's."""
    if tensor == 1:
        return config
    parts: dict[str, Any] = {"head_dim": config.head_dim, "pruned_heads": None}
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size", "moe_intermediate_size"):
        value = getattr(config, name)
        if value is not None and value % tensor:
            raise UserError(f"mesh.tensor {tensor} does not divide model.{name} {value}: choose a size that does")
        parts[name] = None if value is None else value // tensor
    return dataclasses.replace(config, **parts)


def _is_loop(eqn: JaxprEqn, length: int) -> bool:
    return eqn.primitive.name == "scan" and eqn.params["length"] == length


def _kept(
    forward: JaxprEqn, backward: JaxprEqn, *, pad: bool, residual: set[tuple[int, int, int]], tensor: int
) -> tuple[int, int]:
    """(activations, weights) that a scan over layers puts out for its reverse; equal values are kept once by XLA.

    Arrays of the `residual` stream's shapes are shared out by tokens among the chips of a tensor axis.
    """
    body = loop_body(forward)
    consts, carry = forward.params["num_consts"], forward.params["num_carry"]
    xs: list[Any] = body.invars[consts + carry :]
    parameters = {id(var) for var in xs if jnp.issubdtype(var.aval.dtype, jnp.floating) and var.aval.ndim}
    number = _value_numbers(body)
    of_tokens = _depends_on(body, [var for var in body.invars if id(var) not in parameters])
    uses = _uses(backward)
    seen, bytes_of = set(), {True: 0, False: 0}
    for inner, outer in zip(body.outvars[carry:], forward.outvars[carry:], strict=True):
        if isinstance(inner, Literal) or number[inner] in seen:
            continue
        seen.add(number[inner])
        aval: Any = outer.aval
        dtype, used_by = aval.dtype, uses.get(outer, set())
        if pad and dtype == jnp.float32 and used_by == {"dot_general"}:
            dtype = jnp.bfloat16  # a TPU's matmuls round to it at their door, so XLA keeps no more
        # Kernels want their own order of axes; otherwise XLA finds one that fills the tiles.
        free = "pallas_call" not in used_by
        shared = tensor if tuple(aval.shape[1:]) in residual else 1
        bytes_of[inner in of_tokens] += padded_bytes(aval.shape, dtype, pad, free=free) // shared
    return bytes_of[True], bytes_of[False]


def _uses(backward: JaxprEqn) -> dict[Any, set[str]]:
    """What reads each input of the reverse scan, looked at through changes of shape."""
    body = loop_body(backward)
    reads: dict[Any, set[str]] = defaultdict(set)
    for eqn in reversed(body.eqns):
        inner = {e.primitive.name for jaxpr in inner_jaxprs(eqn) for e in equations(jaxpr)}
        names = {"pallas_call"} if "pallas_call" in inner else {eqn.primitive.name}
        if eqn.primitive.name in ("reshape", "transpose", "squeeze"):
            names = reads[eqn.outvars[0]]
        for var in eqn.invars:
            if not isinstance(var, Literal):
                reads[var] |= names
    pairs = zip(backward.invars, body.invars, strict=True)
    return {outer: reads[inner] for outer, inner in pairs if not isinstance(outer, Literal)}


def _value_numbers(jaxpr: Jaxpr) -> dict[Any, int]:
    """Equal numbers for values that the same operation made of the same values."""
    number: dict[Any, int] = {var: index for index, var in enumerate((*jaxpr.constvars, *jaxpr.invars))}
    known: dict[Any, int] = {}
    for eqn in jaxpr.eqns:
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

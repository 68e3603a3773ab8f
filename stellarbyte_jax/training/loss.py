"""Next-token cross-entropy that never holds all logits at once."""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.sharding import ONE_DEVICE, Layout
from stellarbyte_jax.training.distillation import TeacherOutput
from stellarbyte_jax.training.logit_loss import PLAIN, Regularization, chunk_loss, logit_gradient, summed

# The number of tokens, over all rows, whose logits are in memory at the same time.
TOKENS_PER_CHUNK = 2048


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """float32 sums over the labelled tokens; divide by `tokens` only after adding up all micro-batches."""

    loss: jax.Array  # cross-entropy, nats
    correct: jax.Array  # tokens whose label is the argmax of the logits, which is the lowest id among equals
    tokens: jax.Array
    regularized: jax.Array | None = None  # the loss with its Regularization, if it has any
    divergence: jax.Array | None = None  # KL(teacher ‖ student), nats, if there is a teacher

    @property
    def objective(self) -> jax.Array:
        """What training makes small."""
        return self.loss if self.regularized is None else self.regularized


def token_loss(
    hidden_BTD: jax.Array,
    head: jax.Array,
    labels_BT: jax.Array,
    head_axes: str = "DV",
    *,
    layout: Layout = ONE_DEVICE,
    platform: str = "cpu",
    regularization: Regularization = PLAIN,
    teacher: TeacherOutput | None = None,
) -> LossSums:
    """Cross-entropy of softmax(hidden · head) against labels; labels of -100 do not count.

    With a regularization only `objective` has a gradient. `teacher` comes with its distillation, and gets no gradient.

    `head_axes` is "DV", or "VD" for a tied embedding, so that its gradient needs no transpose.

    The gradient is computed chunk by chunk along with the loss, so that logits are made once and never stored. On a
    mesh each device has the logits of its own tokens and of its own part of the vocabulary. It accumulates its own
    gradient of the head, and these gradients are summed over devices once.
    """
    assert (teacher is None) == (regularization.distillation is None)
    sharding = _HeadSharding(head_axes, layout, platform, None if teacher is None else teacher.head_axes)
    taught = () if teacher is None else (teacher.hidden_BTD, teacher.head)
    objective, correct, *more = _cross_entropy(hidden_BTD, head, labels_BT, taught, sharding, regularization)
    tokens = jnp.sum(labels_BT != IGNORED_LABEL, dtype=jnp.float32)
    return LossSums(more[0], correct, tokens, objective, *more[1:]) if more else LossSums(objective, correct, tokens)


@dataclass(frozen=True)
class _HeadSharding:
    """How head, hidden states and labels are laid out: axis order, sharding, platform; and the teacher's head."""

    head_axes: str
    layout: Layout
    platform: str
    teacher_axes: str | None

    @property
    def vocab(self) -> tuple[str, ...]:
        """Mesh axes that share out the vocabulary."""
        return self.layout.mesh_axes("vocab")

    @property
    def tokens(self) -> tuple[str, ...]:
        """Mesh axes that share out the tokens."""
        return self.layout.mesh_axes("batch") + self.layout.mesh_axes("length")

    @property
    def scattered(self) -> tuple[str, ...]:
        """The token axes over which parameters are spread; a device keeps only its part of the head's gradient."""
        return tuple(name for name in self.layout.mesh_axes("hidden") if name in self.tokens)

    def map(
        self, function: Callable[..., Any], regularization: Regularization, *, with_gradients: bool
    ) -> Callable[..., Any]:
        spec = self.layout.spec
        hidden, labels = spec("batch", "length", None), spec("batch", "length")
        vocab = spec("vocab")[0]

        def head(axes: str, hidden_axes: tuple[str, ...] = ()) -> PartitionSpec:
            return PartitionSpec(*((hidden_axes or None) if name == "D" else vocab for name in axes))

        taught = () if self.teacher_axes is None else (hidden, head(self.teacher_axes))
        sums = (spec(),) * regularization.sums_count
        out_specs = (sums, (hidden, head(self.head_axes, self.scattered))) if with_gradients else sums
        function = functools.partial(function, sharding=self, regularization=regularization)
        return self.layout.map(function, (hidden, head(self.head_axes), labels, taught), out_specs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _cross_entropy(
    hidden_BTD: jax.Array,
    head: jax.Array,
    labels_BT: jax.Array,
    taught: tuple[jax.Array, ...],
    sharding: _HeadSharding,
    regularization: Regularization,
) -> tuple[jax.Array, ...]:
    return sharding.map(_device_loss, regularization, with_gradients=False)(hidden_BTD, head, labels_BT, taught)


def _forward(hidden_BTD, head, labels_BT, taught, sharding, regularization):  # type: ignore[no-untyped-def]
    return sharding.map(_device_gradients, regularization, with_gradients=True)(hidden_BTD, head, labels_BT, taught)


def _backward(_, __, gradients, cotangents):  # type: ignore[no-untyped-def]
    d_hidden_BTD, d_head = gradients
    scale = cotangents[0]
    return (d_hidden_BTD * scale).astype(d_hidden_BTD.dtype), (d_head * scale).astype(d_head.dtype), None, None


_cross_entropy.defvjp(_forward, _backward)


def _device_loss(hidden_BTD, head, labels_BT, taught, *, sharding, regularization):  # type: ignore[no-untyped-def]
    def add(sums, hidden_BU, labels_BU):  # type: ignore[no-untyped-def]
        logits = _chunk_logits(hidden_BU, head, taught, sharding)
        chunk = chunk_loss(*logits, labels_BU.reshape(-1), regularization, sharding.vocab)
        return tuple(map(operator.add, sums, chunk.sums)), None

    zeros = (jnp.zeros((), jnp.float32),) * regularization.sums_count
    sums, _ = _over_chunks(add, zeros, (hidden_BTD, *taught[:1]), labels_BT, sharding.platform)
    return summed(sums, sharding.tokens)


def _device_gradients(hidden_BTD, head, labels_BT, taught, *, sharding, regularization):  # type: ignore[no-untyped-def]
    def add(carry, hidden_BU, labels_BU):  # type: ignore[no-untyped-def]
        sums, d_head = carry
        (logits_MV, teacher_MV), labels_M = _chunk_logits(hidden_BU, head, taught, sharding), labels_BU.reshape(-1)
        chunk = chunk_loss(logits_MV, teacher_MV, labels_M, regularization, sharding.vocab)
        d_logits_MV = logit_gradient(logits_MV, labels_M, chunk, regularization, sharding.vocab).astype(head.dtype)
        hidden_BUD = hidden_BU[0]
        hidden_MD = hidden_BUD.reshape(-1, hidden_BUD.shape[-1])
        d_hidden_MD = summed(jnp.einsum(f"MV,{sharding.head_axes}->MD", d_logits_MV, head), sharding.vocab)
        d_head += jnp.einsum(f"MD,MV->{sharding.head_axes}", hidden_MD, d_logits_MV, preferred_element_type=jnp.float32)
        return (tuple(map(operator.add, sums, chunk.sums)), d_head), d_hidden_MD.reshape(hidden_BUD.shape)

    zero = jnp.zeros((), jnp.float32)
    if sharding.platform != "cpu":
        # Without this barrier XLA makes the zeros of the sum before the first layer, and they take memory until here.
        zero, hidden_BTD = jax.lax.optimization_barrier((zero, hidden_BTD))
    start = (zero,) * regularization.sums_count, jnp.broadcast_to(zero, head.shape)
    (sums, d_head), d_hidden_BTD = _over_chunks(add, start, (hidden_BTD, *taught[:1]), labels_BT, sharding.platform)
    d_head = summed(d_head, tuple(name for name in sharding.tokens if name not in sharding.scattered))
    if sharding.scattered:
        axis = sharding.head_axes.index("D")
        d_head = jax.lax.psum_scatter(d_head, sharding.scattered, scatter_dimension=axis, tiled=True)
        # Without this barrier XLA cuts out the part only where the optimizer needs it, and keeps the whole until then.
        d_head = jax.lax.optimization_barrier(d_head)
    return summed(sums, sharding.tokens), (d_hidden_BTD, d_head.astype(head.dtype))


def _over_chunks(add, sums, hidden_BT, labels_BT, platform):  # type: ignore[no-untyped-def]
    """(sums, outputs [B, T, …]) after `add`, (sums, hidden, labels) -> (sums, output), was applied to each chunk.

    hidden_BT: a tuple of hidden states [B, T, …].

    Many chunks make a loop, so that the program does not grow. On accelerators two chunks already do, so that the
    logits of one are freed before those of the next are made. A CPU is faster without the loop.
    """
    B, T = labels_BT.shape
    size = _chunk_size(B, T)
    count, outputs = T // size, []
    if count > (8 if platform == "cpu" else 1):

        def add_one(sums, index):  # type: ignore[no-untyped-def]
            cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=index * size, slice_size=size, axis=1)
            return add(sums, tuple(map(cut, hidden_BT)), cut(labels_BT))

        sums, stacked = jax.lax.scan(add_one, sums, jnp.arange(count))
        outputs.append(jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, count * size, *x.shape[3:]), stacked))
    else:
        count = 0
    for start in range(count * size, T, size):
        part = slice(start, start + size)
        sums, output = add(sums, tuple(hidden[:, part] for hidden in hidden_BT), labels_BT[:, part])
        outputs.append(output)
    return sums, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outputs)


def chunk_count(rows: int, length: int) -> int:
    """The number of chunks in which the loss takes a device's `rows` of `length` tokens."""
    return max(1, min(length, round(rows * length / TOKENS_PER_CHUNK)))


def _chunk_size(B: int, T: int) -> int:
    """The number of positions in a chunk, which holds them for all rows."""
    return -(-T // chunk_count(B, T))


def _chunk_logits(
    hidden_BU: tuple[jax.Array, ...], head: jax.Array, taught: tuple[jax.Array, ...], sharding: _HeadSharding
) -> tuple[jax.Array, jax.Array | None]:
    """The student's and the teacher's logits of a chunk for this device's part of the vocabulary."""

    def logits(hidden_BUD: jax.Array, head: jax.Array, axes: str) -> jax.Array:
        hidden_MD = hidden_BUD.reshape(-1, hidden_BUD.shape[-1])
        return jnp.einsum(f"MD,{axes}->MV", hidden_MD, head, preferred_element_type=jnp.float32)

    ours_MV = logits(hidden_BU[0], head, sharding.head_axes)
    return ours_MV, logits(hidden_BU[1], taught[1], sharding.teacher_axes) if sharding.teacher_axes else None

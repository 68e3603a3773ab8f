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

# The number of tokens, over all rows, whose logits are in memory at the same time.
TOKENS_PER_CHUNK = 2048


@dataclass(frozen=True)
class Regularization:
    """What the loss of training has beside the cross-entropy.

    label_smoothing_factor: the share of a label's weight that is spread evenly over the vocabulary (Szegedy et al.
        2016, arXiv:1512.00567); the loss is (1 - factor) · cross-entropy - factor · mean of all log-probabilities.
    z_loss_coef: the weight of logsumexp(logits)² (Chowdhery et al. 2022, arXiv:2204.02311).
    """

    label_smoothing_factor: float = 0.0
    z_loss_coef: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.label_smoothing_factor or self.z_loss_coef)


PLAIN = Regularization()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """float32 sums over the labelled tokens; divide by `tokens` only after adding up all micro-batches."""

    loss: jax.Array  # cross-entropy, nats
    correct: jax.Array  # tokens whose label is the argmax of the logits, which is the lowest id among equals
    tokens: jax.Array
    regularized: jax.Array | None = None  # the loss with its Regularization, if it has any

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
) -> LossSums:
    """Cross-entropy of softmax(hidden · head) against labels; labels of -100 do not count.

    With a regularization only `objective` has a gradient.

    `head_axes` is "DV", or "VD" for a tied embedding, so that its gradient needs no transpose.

    The gradient is computed chunk by chunk along with the loss, so that logits are made once and never stored. On a
    mesh each device has the logits of its own tokens and of its own part of the vocabulary. It accumulates its own
    gradient of the head, and these gradients are summed over devices once.
    """
    sharding = _HeadSharding(head_axes, layout, platform)
    objective, correct, *plain = _cross_entropy(hidden_BTD, head, labels_BT, sharding, regularization)
    tokens = jnp.sum(labels_BT != IGNORED_LABEL, dtype=jnp.float32)
    return LossSums(plain[0], correct, tokens, objective) if plain else LossSums(objective, correct, tokens)


@dataclass(frozen=True)
class _HeadSharding:
    """How head, hidden states and labels are laid out: axis order, sharding, platform."""

    head_axes: str
    layout: Layout
    platform: str

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
        head, d_head = (
            PartitionSpec(*(axis if name == "D" else vocab for name in self.head_axes))
            for axis in (None, self.scattered or None)
        )
        sums = (spec(),) * _sums_count(regularization)
        out_specs = (sums, (hidden, d_head)) if with_gradients else sums
        function = functools.partial(function, sharding=self, regularization=regularization)
        return self.layout.map(function, (hidden, head, labels), out_specs)


def _sums_count(regularization: Regularization) -> int:
    """Objective and correct predictions; the plain loss comes third where it is not the objective."""
    return 3 if regularization else 2


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _cross_entropy(
    hidden_BTD: jax.Array,
    head: jax.Array,
    labels_BT: jax.Array,
    sharding: _HeadSharding,
    regularization: Regularization,
) -> tuple[jax.Array, ...]:
    return sharding.map(_device_loss, regularization, with_gradients=False)(hidden_BTD, head, labels_BT)


def _forward(hidden_BTD, head, labels_BT, sharding, regularization):  # type: ignore[no-untyped-def]
    return sharding.map(_device_gradients, regularization, with_gradients=True)(hidden_BTD, head, labels_BT)


def _backward(_, __, gradients, cotangents):  # type: ignore[no-untyped-def]
    d_hidden_BTD, d_head = gradients
    scale = cotangents[0]
    return (d_hidden_BTD * scale).astype(d_hidden_BTD.dtype), (d_head * scale).astype(d_head.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _device_loss(hidden_BTD, head, labels_BT, *, sharding, regularization):  # type: ignore[no-untyped-def]
    def add(sums, hidden_BUD, labels_BU):  # type: ignore[no-untyped-def]
        logits_MV = _chunk_logits(hidden_BUD, head, sharding)
        chunk_sums, *_ = _chunk_loss(logits_MV, labels_BU.reshape(-1), sharding, regularization)
        return tuple(map(operator.add, sums, chunk_sums)), None

    zeros = (jnp.zeros((), jnp.float32),) * _sums_count(regularization)
    sums, _ = _over_chunks(add, zeros, hidden_BTD, labels_BT, sharding.platform)
    return _sum(sums, sharding.tokens)


def _device_gradients(hidden_BTD, head, labels_BT, *, sharding, regularization):  # type: ignore[no-untyped-def]
    def add(carry, hidden_BUD, labels_BU):  # type: ignore[no-untyped-def]
        sums, d_head = carry
        logits_MV, labels_M = _chunk_logits(hidden_BUD, head, sharding), labels_BU.reshape(-1)
        chunk_sums, log_total_M, place_M = _chunk_loss(logits_MV, labels_M, sharding, regularization)

        # d loss / d logits = softmax - one_hot, 0 where there is no label.
        is_label_MV = place_M[:, None] == jnp.arange(logits_MV.shape[1])
        probs_MV = jnp.exp(logits_MV - log_total_M[:, None])
        ignored_M1 = (labels_M == IGNORED_LABEL)[:, None]
        difference_MV = probs_MV - is_label_MV
        if regularization:
            smoothing, z = regularization.label_smoothing_factor, regularization.z_loss_coef
            uniform = 1 / (logits_MV.shape[1] * sharding.layout.parts("vocab"))
            difference_MV += smoothing * (is_label_MV - uniform) + 2 * z * log_total_M[:, None] * probs_MV
        d_logits_MV = jnp.where(ignored_M1, 0.0, difference_MV)
        d_logits_MV = d_logits_MV.astype(head.dtype)
        hidden_MD = hidden_BUD.reshape(-1, hidden_BUD.shape[-1])
        d_hidden_MD = _sum(jnp.einsum(f"MV,{sharding.head_axes}->MD", d_logits_MV, head), sharding.vocab)
        d_head += jnp.einsum(f"MD,MV->{sharding.head_axes}", hidden_MD, d_logits_MV, preferred_element_type=jnp.float32)
        return (tuple(map(operator.add, sums, chunk_sums)), d_head), d_hidden_MD.reshape(hidden_BUD.shape)

    zero = jnp.zeros((), jnp.float32)
    if sharding.platform != "cpu":
        # Without this barrier XLA makes the zeros of the sum before the first layer, and they take memory until here.
        zero, hidden_BTD = jax.lax.optimization_barrier((zero, hidden_BTD))
    start = (zero,) * _sums_count(regularization), jnp.broadcast_to(zero, head.shape)
    (sums, d_head), d_hidden_BTD = _over_chunks(add, start, hidden_BTD, labels_BT, sharding.platform)
    d_head = _sum(d_head, tuple(name for name in sharding.tokens if name not in sharding.scattered))
    if sharding.scattered:
        axis = sharding.head_axes.index("D")
        d_head = jax.lax.psum_scatter(d_head, sharding.scattered, scatter_dimension=axis, tiled=True)
        # Without this barrier XLA cuts out the part only where the optimizer needs it, and keeps the whole until then.
        d_head = jax.lax.optimization_barrier(d_head)
    return _sum(sums, sharding.tokens), (d_hidden_BTD, d_head.astype(head.dtype))


def _over_chunks(add, sums, hidden_BTD, labels_BT, platform):  # type: ignore[no-untyped-def]
    """(sums, outputs [B, T, …]) after `add`, (sums, hidden, labels) -> (sums, output), was applied to each chunk.

    Many chunks make a loop, so that the program does not grow. On accelerators two chunks already do, so that the
    logits of one are freed before those of the next are made. A CPU is faster without the loop.
    """
    B, T = labels_BT.shape
    size = _chunk_size(B, T)
    count, outputs = T // size, []
    if count > (8 if platform == "cpu" else 1):

        def add_one(sums, index):  # type: ignore[no-untyped-def]
            cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=index * size, slice_size=size, axis=1)
            return add(sums, cut(hidden_BTD), cut(labels_BT))

        sums, stacked = jax.lax.scan(add_one, sums, jnp.arange(count))
        outputs.append(jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, count * size, *x.shape[3:]), stacked))
    else:
        count = 0
    for start in range(count * size, T, size):
        sums, output = add(sums, hidden_BTD[:, start : start + size], labels_BT[:, start : start + size])
        outputs.append(output)
    return sums, jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *outputs)


def chunk_count(rows: int, length: int) -> int:
    """The number of chunks in which the loss takes a device's `rows` of `length` tokens."""
    return max(1, min(length, round(rows * length / TOKENS_PER_CHUNK)))


def _chunk_size(B: int, T: int) -> int:
    """The number of positions in a chunk, which holds them for all rows."""
    return -(-T // chunk_count(B, T))


def _chunk_logits(hidden_BUD: jax.Array, head: jax.Array, sharding: _HeadSharding) -> jax.Array:
    """The logits of a chunk for this device's part of the vocabulary."""
    hidden_MD = hidden_BUD.reshape(-1, hidden_BUD.shape[-1])
    return jnp.einsum(f"MD,{sharding.head_axes}->MV", hidden_MD, head, preferred_element_type=jnp.float32)


def _chunk_loss(
    logits_MV: jax.Array, labels_M: jax.Array, sharding: _HeadSharding, regularization: Regularization
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """(the sums that _sums_count tells of, log of the softmax's sum, index of each label among these logits or -1)."""
    labelled_M = labels_M != IGNORED_LABEL
    largest_M, place_M, here_M = logits_MV.max(axis=-1), labels_M, labelled_M
    if sharding.vocab:
        largest_M = jax.lax.pmax(largest_M, sharding.vocab)
        place_M = labels_M - jax.lax.axis_index(sharding.vocab) * logits_MV.shape[1]
        here_M = labelled_M & (place_M >= 0) & (place_M < logits_MV.shape[1])
    log_total_M = largest_M + jnp.log(_sum(jnp.exp(logits_MV - largest_M[:, None]).sum(axis=-1), sharding.vocab))
    label_logits_M = jnp.take_along_axis(logits_MV, jnp.where(here_M, place_M, 0)[:, None], axis=-1)[:, 0]
    if sharding.vocab:
        label_logits_M = jax.lax.psum(jnp.where(here_M, label_logits_M, 0.0), sharding.vocab)
    loss = jnp.sum(jnp.where(labelled_M, log_total_M - label_logits_M, 0.0))
    # As in argmax, the first of equal logits wins: a model that gives all tokens the same logit must not be right.
    before_MV = jnp.arange(logits_MV.shape[1]) < place_M[:, None]
    as_large_before_M = _sum(
        jnp.any((logits_MV == largest_M[:, None]) & before_MV, axis=-1).astype(jnp.int32), sharding.vocab
    )
    right_M = labelled_M & (label_logits_M >= largest_M) & (as_large_before_M == 0)
    correct = jnp.sum(right_M, dtype=jnp.float32)
    sums: tuple[jax.Array, ...] = loss, correct
    if regularization:
        smoothing, z = regularization.label_smoothing_factor, regularization.z_loss_coef
        size = logits_MV.shape[1] * sharding.layout.parts("vocab")
        mean_M = _sum(logits_MV.sum(axis=-1), sharding.vocab) / size
        added_M = smoothing * (label_logits_M - mean_M) + z * log_total_M**2
        sums = loss + jnp.sum(jnp.where(labelled_M, added_M, 0.0)), correct, loss
    return sums, log_total_M, jnp.where(here_M, place_M, -1)


def _sum(x: Any, axes: tuple[str, ...]) -> Any:
    return jax.lax.psum(x, axes) if axes else x

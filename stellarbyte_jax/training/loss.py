"""Next-token cross-entropy that never holds all logits at once."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

IGNORED_LABEL = -100

# Positions whose logits stand in memory together, times the batch.
TOKENS_PER_CHUNK = 2048


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """float32 sums over the labelled tokens; divide by `tokens` only after adding up all micro-batches."""

    loss: jax.Array  # nats
    correct: jax.Array  # tokens whose label has the largest logit
    tokens: jax.Array


def token_loss(hidden_BTD: jax.Array, head: jax.Array, labels_BT: jax.Array, head_axes: str = "DV") -> LossSums:
    """Cross-entropy of softmax(hidden · head) against labels; labels of -100 count for nothing.

    `head_axes` is "DV", or "VD" for a tied embedding, whose gradient then needs no transposing.

    The gradient is worked out chunk by chunk along with the loss, so that logits are made once and never stored.
    """
    loss, correct = _cross_entropy(hidden_BTD, head, labels_BT, head_axes)
    return LossSums(loss, correct, jnp.sum(labels_BT != IGNORED_LABEL, dtype=jnp.float32))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _cross_entropy(
    hidden_BTD: jax.Array, head: jax.Array, labels_BT: jax.Array, head_axes: str
) -> tuple[jax.Array, jax.Array]:
    loss = correct = jnp.zeros((), jnp.float32)
    for chunk in _chunks(labels_BT.shape):
        logits_MV, labels_M = _chunk_logits(hidden_BTD[:, chunk], head, labels_BT[:, chunk], head_axes)
        chunk_loss, chunk_correct, _ = _chunk_loss(logits_MV, labels_M)
        loss, correct = loss + chunk_loss, correct + chunk_correct
    return loss, correct


def _forward(hidden_BTD, head, labels_BT, head_axes):  # type: ignore[no-untyped-def]
    loss = correct = jnp.zeros((), jnp.float32)
    d_hidden, d_head = [], jnp.zeros(head.shape, jnp.float32)
    for chunk in _chunks(labels_BT.shape):
        hidden_BCD = hidden_BTD[:, chunk]
        logits_MV, labels_M = _chunk_logits(hidden_BCD, head, labels_BT[:, chunk], head_axes)
        chunk_loss, chunk_correct, log_total_M = _chunk_loss(logits_MV, labels_M)
        loss, correct = loss + chunk_loss, correct + chunk_correct

        # d loss / d logits = softmax - one_hot, 0 where there is no label.
        is_label_MV = labels_M[:, None] == jnp.arange(logits_MV.shape[1])
        probs_MV = jnp.exp(logits_MV - log_total_M[:, None])
        d_logits_MV = jnp.where((labels_M == IGNORED_LABEL)[:, None], 0.0, probs_MV - is_label_MV)
        d_logits_MV = d_logits_MV.astype(head.dtype)
        hidden_MD = hidden_BCD.reshape(-1, hidden_BCD.shape[-1])
        d_hidden.append(jnp.einsum(f"MV,{head_axes}->MD", d_logits_MV, head).reshape(hidden_BCD.shape))
        d_head += jnp.einsum(f"MD,MV->{head_axes}", hidden_MD, d_logits_MV, preferred_element_type=jnp.float32)
    return (loss, correct), (jnp.concatenate(d_hidden, axis=1), d_head.astype(head.dtype))


def _backward(_, gradients, cotangents):  # type: ignore[no-untyped-def]
    d_hidden_BTD, d_head = gradients
    scale = cotangents[0]
    return (d_hidden_BTD * scale).astype(d_hidden_BTD.dtype), (d_head * scale).astype(d_head.dtype), None


_cross_entropy.defvjp(_forward, _backward)


def _chunks(shape: tuple[int, ...]) -> list[slice]:
    B, T = shape
    count = max(1, min(T, round(B * T / TOKENS_PER_CHUNK)))
    size = -(-T // count)
    return [slice(start, min(start + size, T)) for start in range(0, T, size)]


def _chunk_logits(
    hidden_BCD: jax.Array, head: jax.Array, labels_BC: jax.Array, head_axes: str
) -> tuple[jax.Array, jax.Array]:
    hidden_MD = hidden_BCD.reshape(-1, hidden_BCD.shape[-1])
    logits_MV = jnp.einsum(f"MD,{head_axes}->MV", hidden_MD, head, preferred_element_type=jnp.float32)
    return logits_MV, labels_BC.reshape(-1)


def _chunk_loss(logits_MV: jax.Array, labels_M: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    largest_M = logits_MV.max(axis=-1)
    log_total_M = largest_M + jnp.log(jnp.exp(logits_MV - largest_M[:, None]).sum(axis=-1))
    labelled_M = labels_M != IGNORED_LABEL
    label_logits_M = jnp.take_along_axis(logits_MV, jnp.where(labelled_M, labels_M, 0)[:, None], axis=-1)[:, 0]
    loss = jnp.sum(jnp.where(labelled_M, log_total_M - label_logits_M, 0.0))
    correct = jnp.sum(labelled_M & (label_logits_M >= largest_M), dtype=jnp.float32)
    return loss, correct, log_total_M

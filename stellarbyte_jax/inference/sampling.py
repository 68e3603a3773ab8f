"""Draws the next token from logits."""

import jax
import jax.numpy as jnp
import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.sampling import Sampling

# This stands for a token that was drawn from logits which are not finite. A compiled program cannot raise an error, so
# `check_drawn` raises it later.
NOT_FINITE = -1


def check_drawn(tokens: np.ndarray) -> None:
    """Refuses tokens that were drawn from logits which are not finite.

    Raises:
        UserError: NOT_FINITE is among the tokens.
    """
    if (tokens == NOT_FINITE).any():
        raise UserError(
            "the model's logits are not finite: its weights are too large; take an earlier checkpoint, or "
            "--dtype float32 if this was another"
        )


def seen_in_prompts(
    sampling: Sampling, input_ids_BT: jax.Array, segment_ids_BT: jax.Array, vocab_size: int
) -> jax.Array | None:
    """Which tokens each prompt holds, without its padding (segment 0): bool [B, V]. None if no draw depends on it."""
    if not sampling.penalises:
        return None
    rows_B1 = jnp.arange(input_ids_BT.shape[0])[:, None]
    nothing_BV = jnp.zeros((input_ids_BT.shape[0], vocab_size), bool)
    return nothing_BV.at[rows_B1, input_ids_BT].max(segment_ids_BT != 0)


def warp(logits_MV: jax.Array, sampling: Sampling, seen_MV: jax.Array | None = None) -> jax.Array:
    """Logits whose softmax is the distribution of a draw; they are -inf for tokens that cannot be drawn.

    A row of logits that are not all finite becomes NaN.

    Args:
        logits_MV: float32 logits.
        sampling: how to draw; at temperature 0 only one token is left, the first of the likeliest.
        seen_MV: bool, whether each token occurs so far; only the repetition penalty needs it.
    """
    logits_MV = jnp.where(_are_finite(logits_MV)[..., None], logits_MV, jnp.nan)
    logits_MV = _penalise(logits_MV, sampling, seen_MV)
    if sampling.temperature == 0:
        likeliest_M1 = jnp.argmax(logits_MV, axis=-1, keepdims=True)
        only_MV = jnp.where(jnp.arange(logits_MV.shape[-1]) == likeliest_M1, 0.0, -jnp.inf)
        return jnp.where(_are_finite(logits_MV)[..., None], only_MV, jnp.nan)
    return _temper_and_cut(logits_MV, sampling)


def sample(logits_MV: jax.Array, sampling: Sampling, key: jax.Array, seen_MV: jax.Array | None = None) -> jax.Array:
    """One token of each row, or NOT_FINITE: float32 logits [M, V] -> int32 [M]. Arguments are as in `warp`."""
    finite_M = _are_finite(logits_MV)
    logits_MV = _penalise(logits_MV, sampling, seen_MV)
    if sampling.temperature == 0:
        token_M = jnp.argmax(logits_MV, axis=-1)
    else:
        token_M = jax.random.categorical(key, _temper_and_cut(logits_MV, sampling), axis=-1)
    return jnp.where(finite_M, token_M, NOT_FINITE).astype(jnp.int32)


def _are_finite(logits_MV: jax.Array) -> jax.Array:
    return jnp.isfinite(logits_MV).all(axis=-1)


def _penalise(logits_MV: jax.Array, sampling: Sampling, seen_MV: jax.Array | None) -> jax.Array:
    if not sampling.penalises:
        return logits_MV
    assert seen_MV is not None
    penalty = sampling.repetition_penalty
    return jnp.where(seen_MV, jnp.where(logits_MV < 0, logits_MV * penalty, logits_MV / penalty), logits_MV)


def _temper_and_cut(logits_MV: jax.Array, sampling: Sampling) -> jax.Array:
    logits_MV = logits_MV / sampling.temperature
    if sampling.top_k is not None:
        logits_MV = _keep_top_k(logits_MV, sampling.top_k)
    if sampling.top_p is not None:
        logits_MV = _keep_top_p(logits_MV, sampling.top_p)
    if sampling.min_p is not None:
        logits_MV = _keep_min_p(logits_MV, sampling.min_p)
    return logits_MV


def _keep_top_k(logits_MV: jax.Array, k: int) -> jax.Array:
    kth_M1 = jax.lax.top_k(logits_MV, min(k, logits_MV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_MV < kth_M1, -jnp.inf, logits_MV)


def _keep_top_p(logits_MV: jax.Array, p: float) -> jax.Array:
    """Keeps the likeliest tokens until their probabilities reach p, with the one that reaches it and its equals."""
    sorted_MV = jnp.sort(logits_MV, axis=-1)
    # The sum begins with the least likely token: small probabilities would be lost when added to a sum near 1.
    mass_up_to_MV = jnp.cumsum(jax.nn.softmax(sorted_MV, axis=-1), axis=-1)
    kept_MV = (mass_up_to_MV > 1 - p).at[:, -1].set(True)
    smallest_kept_M1 = jnp.min(jnp.where(kept_MV, sorted_MV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_MV < smallest_kept_M1, -jnp.inf, logits_MV)


def _keep_min_p(logits_MV: jax.Array, p: float) -> jax.Array:
    """Keeps the tokens that are at least p times as likely as the likeliest."""
    relative_MV = jnp.exp(logits_MV - jnp.max(logits_MV, axis=-1, keepdims=True))
    return jnp.where(relative_MV < p, -jnp.inf, logits_MV)

"""How the next token is drawn from logits."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from stellarbyte_jax.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; otherwise top-k, then top-p (Holtzman et al. 2020), of the tempered distribution.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature} must be at least 0 (0 is greedy) and finite")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} must be greater than 0 and at most 1")


def sample(logits_BV: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """Draw one token a row: float32 logits [B, V] -> int32 [B]."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_k is not None:
        logits_BV = _keep_top_k(logits_BV, sampling.top_k)
    if sampling.top_p is not None:
        logits_BV = _keep_top_p(logits_BV, sampling.top_p)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def _keep_top_k(logits_BV: jax.Array, k: int) -> jax.Array:
    kth_B1 = jax.lax.top_k(logits_BV, min(k, logits_BV.shape[-1]))[0][:, -1:]
    return jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)


def _keep_top_p(logits_BV: jax.Array, p: float) -> jax.Array:
    """Keep the likeliest tokens until their probabilities reach p, the one that reaches it included."""
    sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
    probs_BV = jax.nn.softmax(sorted_BV, axis=-1)
    mass_before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV
    smallest_kept_B1 = jnp.min(jnp.where(mass_before_BV < p, sorted_BV, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits_BV < smallest_kept_B1, -jnp.inf, logits_BV)

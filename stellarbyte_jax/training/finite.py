"""Refuses to save parameters that are not finite."""

from typing import Any

import jax
import jax.numpy as jnp

from stellarbyte.errors import UserError

ADVICE = "lower optimizer.learning_rate or raise optimizer.warmup_steps"


def check_finite(params: Any, step: int) -> None:
    """Refuses parameters that are not all finite.

    Raises:
        UserError: one is nan or infinite.
    """
    if not bool(_all_finite(params)):
        raise UserError(f"the parameters after step {step} are not finite and are not saved: {ADVICE}")


@jax.jit
def _all_finite(params: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))

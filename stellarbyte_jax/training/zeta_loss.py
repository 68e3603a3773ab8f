"""A penalty that keeps a trained zeta of XPos in the shape that it starts with."""

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.rope import first_zeta
from stellarbyte_jax.training.state import Params


def zeta_loss(params: Params, head_dim: int) -> jax.Array:
    """How far zeta is from rising over the pairs, and from its start z: float32.

    Over the head_dim/2 pairs, it is mean(max(0, zeta_i - zeta_{i+1})) + mean((zeta_i - z_i)²). The first keeps the
    order of Sun et al. 2022, arXiv:2212.10554, in which slower pairs decay less; the second keeps zeta from drifting.
    """
    zeta_P = params["model"]["rotary_emb"]["zeta"]
    falls = jnp.mean(jnp.maximum(0.0, zeta_P[:-1] - zeta_P[1:])) if len(zeta_P) > 1 else 0.0
    return falls + jnp.mean(jnp.square(zeta_P - first_zeta(head_dim)))

"""Sorts rows by their experts, sends them through the experts and puts them back, on one device."""

import jax
import jax.numpy as jnp

from stellarbyte_jax.model.experts.grouped_matmul import grouped_matmul
from stellarbyte_jax.model.feed_forward import gated


def serve_rows(
    gate_up_EDF: jax.Array,
    down_EFD: jax.Array,
    x_MD: jax.Array,
    weight_Mk: jax.Array,
    expert_Mk: jax.Array,
    hidden_act: str,
    *,
    everyone: bool = True,
) -> jax.Array:
    """The sum of weight · expert(x) over the choices of each row: float32 [M, D].

    everyone: every choice is a valid expert index. If False, index E means "no expert" and contributes 0.
    The (row, choice) pairs P = M · k are sorted by expert, stably.
    """
    E, _, D = down_EFD.shape
    expert_P = expert_Mk.reshape(-1)
    order_P = jnp.argsort(expert_P, stable=True)
    inverse_P = jnp.argsort(order_P)
    sizes_E = jnp.bincount(expert_P, length=E)
    # A grouped matmul leaves undefined values behind the last group, forward and backward.
    served_P1 = (jnp.arange(expert_P.size) < sizes_E.sum())[:, None]

    x_PD = _dispatch(x_MD, order_P, inverse_P)
    x_PD = x_PD if everyone else jnp.where(served_P1, x_PD, 0)
    gate_up_PF = grouped_matmul(x_PD, gate_up_EDF, sizes_E)
    h_PF = gated(hidden_act, *jnp.split(gate_up_PF, 2, axis=-1))
    # The weights are applied before the last matmul, not after it: their gradient then needs no output of it.
    h_PF = (h_PF * _collect(weight_Mk.reshape(-1), inverse_P, order_P)[:, None]).astype(h_PF.dtype)
    y_PD = grouped_matmul(h_PF, down_EFD, sizes_E)
    y_PD = y_PD if everyone else jnp.where(served_P1, y_PD, 0)
    return _collect(y_PD, order_P, inverse_P).reshape(*expert_Mk.shape, D).sum(axis=1, dtype=jnp.float32)


# Rows go to the experts and come back by gathers, in the backward pass as well, because the scatter-adds that autodiff
# would make of them are slow everywhere.
@jax.custom_vjp
def _dispatch(x_MD: jax.Array, order_P: jax.Array, _inverse_P: jax.Array) -> jax.Array:
    """The row of each sorted pair."""
    return x_MD[order_P // (order_P.shape[0] // x_MD.shape[0])]


def _dispatch_forward(x_MD, order_P, inverse_P):  # type: ignore[no-untyped-def]
    return _dispatch(x_MD, order_P, inverse_P), (inverse_P, x_MD.shape)


def _dispatch_backward(residuals, d_PD):  # type: ignore[no-untyped-def]
    inverse_P, (M, D) = residuals
    d_MD = d_PD[inverse_P].reshape(M, -1, D).sum(axis=1, dtype=jnp.float32)
    return d_MD.astype(d_PD.dtype), None, None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def _collect(y_P: jax.Array, _order_P: jax.Array, inverse_P: jax.Array) -> jax.Array:
    """The rows of the sorted pairs in the order of tokens and choices."""
    return y_P[inverse_P]


_collect.defvjp(
    lambda y_P, order_P, inverse_P: (y_P[inverse_P], order_P), lambda order_P, d_P: (d_P[order_P], None, None)
)

"""Tokens to their experts and back, on one device or between those that have the experts."""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from stellarbyte_jax.model.feed_forward import gated
from stellarbyte_jax.model.grouped_matmul import grouped_matmul
from stellarbyte_jax.sharding import Layout

_GATHERED = "gathered expert weights"


def serve_experts(
    gate_up_ED2F: jax.Array,
    down_EFD: jax.Array,
    x_BTD: jax.Array,
    expert_BTk: jax.Array,
    weight_BTk: jax.Array,
    *,
    hidden_act: str,
    layout: Layout,
) -> jax.Array:
    """[B, T, D] -> [B, T, D] on one device: what its tokens get of all experts, its parts of weights and tokens given.

    No token is lost, however uneven the load: devices that share out the experts serve each other's tokens, one
    device's after another's, and send back sums.
    """

    # Whole weights are gathered again for the backward pass: kept, they would be there for all layers at once.
    def serve(gate_up_ED2F, down_EFD, x_MD, expert_Mk, weight_Mk):  # type: ignore[no-untyped-def]
        gate_up_ED2F, down_EFD = _gathered(gate_up_ED2F, 1, layout), _gathered(down_EFD, 2, layout)
        axes = layout.mesh_axes("expert")
        if not axes:
            y_MD = _route(gate_up_ED2F, down_EFD, x_MD, expert_Mk, weight_Mk, hidden_act, whole=True)
        else:
            first, dtype = jax.lax.axis_index(axes) * down_EFD.shape[0], x_MD.dtype

            @jax.checkpoint
            def serve_device(tokens):  # type: ignore[no-untyped-def]
                x_MD, expert_Mk, weight_Mk = tokens
                gate_up, down = gate_up_ED2F.astype(dtype), down_EFD.astype(dtype)
                return _route(gate_up, down, x_MD, expert_Mk - first, weight_Mk, hidden_act, whole=False)

            tokens = jax.lax.all_gather((x_MD, expert_Mk, weight_Mk), axes)
            y_MD = jax.lax.psum_scatter(jax.lax.map(serve_device, tokens), axes)
        axes = layout.mesh_axes("feed_forward")
        return jax.lax.psum(y_MD, axes) if axes else y_MD

    if layout.mesh.size > 1:
        policy = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)
        serve = jax.checkpoint(serve, policy=policy)
    M, k = x_BTD.shape[0] * x_BTD.shape[1], expert_BTk.shape[-1]
    y_MD = serve(gate_up_ED2F, down_EFD, x_BTD.reshape(M, -1), expert_BTk.reshape(M, k), weight_BTk.reshape(M, k))
    return y_MD.astype(x_BTD.dtype).reshape(x_BTD.shape)


def _gathered(weights: jax.Array, axis: int, layout: Layout) -> jax.Array:
    """Whole along `axis`; in float32 where several devices' gradients are to be added up."""
    axes = layout.mesh_axes("hidden")
    if axes:
        weights = jax.lax.all_gather(weights, axes, axis=axis, tiled=True)
    if layout.mesh_axes("expert"):
        weights = weights.astype(jnp.float32)
    return checkpoint_name(weights, _GATHERED) if layout.mesh.size > 1 else weights


def _route(
    gate_up_ED2F: jax.Array,
    down_EFD: jax.Array,
    x_MD: jax.Array,
    expert_Mk: jax.Array,
    weight_Mk: jax.Array,
    hidden_act: str,
    *,
    whole: bool,
) -> jax.Array:
    """What these experts make of tokens, float32 [M, D]; unless they are the `whole`, choices of others count for 0.

    The (token, choice) pairs P = M · k are sorted by expert, stably.
    """
    E, D, _, F = gate_up_ED2F.shape
    expert_P = expert_Mk.reshape(-1)
    if not whole:
        expert_P = jnp.where((expert_P >= 0) & (expert_P < E), expert_P, E)
    order_P = jnp.argsort(expert_P, stable=True)
    inverse_P = jnp.argsort(order_P)
    group_sizes_E = jnp.bincount(expert_P, length=E)
    x_PD = _dispatch(x_MD, order_P, inverse_P)
    # Behind the last group nobody promises what a grouped matmul leaves, forward or backward.
    served_P1 = (jnp.arange(expert_P.size) < group_sizes_E.sum())[:, None]
    x_PD = x_PD if whole else jnp.where(served_P1, x_PD, 0)
    gate_up_PF = grouped_matmul(x_PD, gate_up_ED2F.reshape(E, D, 2 * F), group_sizes_E)
    h_PF = gated(hidden_act, *jnp.split(gate_up_PF, 2, axis=-1))
    y_PD = grouped_matmul(h_PF, down_EFD, group_sizes_E)
    y_PD = y_PD if whole else jnp.where(served_P1, y_PD, 0)
    y_MkD = _collect(y_PD, order_P, inverse_P).reshape(*expert_Mk.shape, D)
    return jnp.einsum("MkD,Mk->MD", y_MkD, weight_Mk, preferred_element_type=jnp.float32)


# Rows go to the experts and come back by gathers, in the backward pass too: the scatter-adds that autodiff would make
# of them are slow everywhere.
@jax.custom_vjp
def _dispatch(x_MD: jax.Array, order_P: jax.Array, _inverse_P: jax.Array) -> jax.Array:
    """Row by row what the sorted pairs need."""
    return x_MD[order_P // (order_P.shape[0] // x_MD.shape[0])]


def _dispatch_forward(x_MD, order_P, inverse_P):  # type: ignore[no-untyped-def]
    return _dispatch(x_MD, order_P, inverse_P), (inverse_P, x_MD.shape)


def _dispatch_backward(residuals, d_PD):  # type: ignore[no-untyped-def]
    inverse_P, (M, D) = residuals
    d_MD = d_PD[inverse_P].reshape(M, -1, D).sum(axis=1, dtype=jnp.float32)
    return d_MD.astype(d_PD.dtype), None, None


_dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def _collect(y_PD: jax.Array, _order_P: jax.Array, inverse_P: jax.Array) -> jax.Array:
    """The sorted pairs' rows in the order of tokens and choices."""
    return y_PD[inverse_P]


_collect.defvjp(
    lambda y_PD, order_P, inverse_P: (y_PD[inverse_P], order_P), lambda order_P, d_PD: (d_PD[order_P], None, None)
)

"""What tokens get of all experts on one device of a mesh, its parts of weights and tokens given."""

import jax
from jax.ad_checkpoint import checkpoint_name

from stellarbyte_jax.model.expert_exchange import exchange_rows
from stellarbyte_jax.model.expert_rows import serve_rows
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
    """[B, T, D] -> [B, T, D]: each of this device's tokens' sum of weight · expert(x); none is lost."""

    # Whole weights are gathered again for the backward pass: kept, they would be there for all layers at once.
    def serve(gate_up_ED2F, down_EFD, x_MD, weight_Mk, expert_Mk):  # type: ignore[no-untyped-def]
        operands = _gathered(gate_up_ED2F, 1, layout), _gathered(down_EFD, 2, layout), x_MD, weight_Mk, expert_Mk
        if layout.mesh_axes("expert"):
            y_MD = exchange_rows(*operands, hidden_act, layout)
        else:
            y_MD = serve_rows(*operands, hidden_act)
        axes = layout.mesh_axes("feed_forward")
        return jax.lax.psum(y_MD, axes) if axes else y_MD

    if layout.mesh.size > 1:
        policy = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)
        serve = jax.checkpoint(serve, policy=policy)
    M, k = x_BTD.shape[0] * x_BTD.shape[1], expert_BTk.shape[-1]
    y_MD = serve(gate_up_ED2F, down_EFD, x_BTD.reshape(M, -1), weight_BTk.reshape(M, k), expert_BTk.reshape(M, k))
    return y_MD.astype(x_BTD.dtype).reshape(x_BTD.shape)


def _gathered(weights: jax.Array, axis: int, layout: Layout) -> jax.Array:
    """Whole along `axis`."""
    axes = layout.mesh_axes("hidden")
    if axes:
        weights = jax.lax.all_gather(weights, axes, axis=axis, tiled=True)
    return checkpoint_name(weights, _GATHERED) if layout.mesh.size > 1 else weights

"""What tokens get of all experts on one device of a mesh, its parts of weights and tokens given."""

import jax

from stellarbyte_jax.model.expert_exchange import exchange_rows
from stellarbyte_jax.model.expert_rows import serve_rows
from stellarbyte_jax.model.remat import gathering_again
from stellarbyte_jax.sharding import Layout


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

    def serve(gate_up_ED2F, down_EFD, x_MD, weight_Mk, expert_Mk):  # type: ignore[no-untyped-def]
        operands = _gathered(gate_up_ED2F, 1, layout), _gathered(down_EFD, 2, layout), x_MD, weight_Mk, expert_Mk
        if layout.mesh_axes("expert"):
            y_MD = exchange_rows(*operands, hidden_act, layout)
        else:
            y_MD = serve_rows(*operands, hidden_act)
        axes = layout.mesh_axes("feed_forward")
        return jax.lax.psum(y_MD, axes) if axes else y_MD

    serve = gathering_again(serve) if layout.mesh_axes("hidden") else serve
    M, k = x_BTD.shape[0] * x_BTD.shape[1], expert_BTk.shape[-1]
    y_MD = serve(gate_up_ED2F, down_EFD, x_BTD.reshape(M, -1), weight_BTk.reshape(M, k), expert_BTk.reshape(M, k))
    return y_MD.astype(x_BTD.dtype).reshape(x_BTD.shape)


def _gathered(weights: jax.Array, axis: int, layout: Layout) -> jax.Array:
    """Whole along `axis`."""
    axes = layout.mesh_axes("hidden")
    return jax.lax.all_gather(weights, axes, axis=axis, tiled=True) if axes else weights

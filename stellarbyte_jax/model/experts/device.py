"""Serves one device's tokens by all experts, given the device's parts of weights and tokens."""

import jax

from stellarbyte_jax.model.experts.exchange import exchange_rows
from stellarbyte_jax.model.experts.rows import serve_rows
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
    """[B, T, D] -> [B, T, D]: the sum of weight · expert(x) for each token of this device; no token is dropped."""

    def serve(gate_up_ED2F, down_EFD, x_MD, weight_Mk, expert_Mk):  # type: ignore[no-untyped-def]
        # The weights are gathered along the axis before the last; otherwise TPUs sum gradients on every device instead
        # of scattering them.
        gate_up_EDF = _gathered(gate_up_ED2F.reshape(*gate_up_ED2F.shape[:2], -1), layout)
        down_EFD = _gathered(down_EFD.swapaxes(1, 2), layout).swapaxes(1, 2)
        operands = gate_up_EDF, down_EFD, x_MD, weight_Mk, expert_Mk
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


def _gathered(weights_EDF: jax.Array, layout: Layout) -> jax.Array:
    axes = layout.mesh_axes("hidden")
    return jax.lax.all_gather(weights_EDF, axes, axis=1, tiled=True) if axes else weights_EDF

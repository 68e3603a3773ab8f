"""Causal attention for NVIDIA GPUs: cuDNN's flash attention, by jax.nn.dot_product_attention."""

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend

from stellarbyte.architecture import XPOS_SMALLEST_ZETA, ByteConfig
from stellarbyte.errors import UserError
from stellarbyte_jax.model.attention.chunked import visible
from stellarbyte_jax.model.attention.splash import check_kv_heads
from stellarbyte_jax.sharding import Layout


def cudnn_attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | None,
    layout: Layout,
) -> jax.Array:
    """Attention as kernels.attention describes it: [B, K, G, T, H]. cuDNN has no float32, which runs in plain XLA.

    Raises:
        UserError: cuDNN cannot do what is asked, or cannot do it on this device.
    """
    if layout.parts("length") > 1:
        raise UserError(
            "training.attention_kernel cudnn sees whole rows only, and mesh.context splits them: use reference, or "
            "mesh.tensor in its place"
        )
    check_kv_heads(layout, k_BKTH.shape[1])
    attend = functools.partial(_attend, window=window)
    rows, heads = layout.spec("batch"), layout.spec("batch", "kv_heads")
    return layout.map(attend, (heads, heads, heads, rows), heads)(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT)


def _attend(
    q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array | None, window: int | None
) -> jax.Array:
    B, K, G, T, H = q_BKGTH.shape
    q_BTNH = q_BKGTH.reshape(B, K * G, T, H).transpose(0, 2, 1, 3)
    k_BTKH, v_BTKH = k_BKTH.transpose(0, 2, 1, 3), v_BKTH.transpose(0, 2, 1, 3)
    mask = None
    if segment_ids_BT is not None:
        # cuDNN before 9.10.2 takes no window beside a mask, so the mask holds the window too.
        mask = visible(0, 0, T, segment_ids_BT, window)[:, None]
        window = None
    implementation: Literal["cudnn", "xla"] = "xla" if q_BKGTH.dtype == jnp.float32 else "cudnn"
    if implementation == "cudnn":
        _check_cudnn(T, H, q_BKGTH.dtype, masked=mask is not None)
    out_BTNH = jax.nn.dot_product_attention(
        q_BTNH,
        k_BTKH,
        v_BTKH,
        mask=mask,
        is_causal=True,
        scale=1.0,
        # (keys to the left, keys to the right) of the query, which is not counted.
        local_window_size=None if window is None else (window - 1, 0),
        implementation=implementation,
    )
    return out_BTNH.transpose(0, 2, 1, 3).reshape(B, K, G, T, H)


def check_xpos(config: ByteConfig) -> None:
    """Refuses XPos decays so fast that cuDNN's mask would not hide a pair.

    The mask subtracts 2^41 from the score of a hidden pair, and XPos may have multiplied that score by up to
    3.5^(max_position_embeddings / xpos_scale_base); 2^10 are left for the score itself.

    Raises:
        UserError: naming the smallest `xpos_scale_base` that fits.
    """
    if config.position_embedding != "xpos":
        return
    smallest = math.ceil(config.max_position_embeddings * math.log(1 / XPOS_SMALLEST_ZETA) / (31 * math.log(2)))
    if config.xpos_scale_base < smallest:
        raise UserError(
            f"model.xpos_scale_base {config.xpos_scale_base} decays too fast for training.attention_kernel cudnn "
            f"within {config.max_position_embeddings} positions: use at least {smallest}, or kernel reference"
        )


def _check_cudnn(T: int, H: int, dtype: jnp.dtype, masked: bool) -> None:
    """Refuses what jax/_src/cudnn/fused_attention_stablehlo.py would refuse, in sentences of our own."""
    backend = get_backend()
    if "cuda" not in backend.platform_version:
        raise UserError(
            f"training.attention_kernel cudnn needs an NVIDIA GPU for {dtype}, and JAX runs on "
            f"{backend.platform}: use auto or chunked"
        )
    hopper = all(int(device.compute_capability.split(".")[0]) >= 9 for device in backend.local_devices())
    largest = 256 if hopper else 128
    if H % 8 or largest < H:
        raise UserError(
            f"training.attention_kernel cudnn takes model.head_dim of a multiple of 8 up to {largest} on this GPU, "
            f"not {H}: use reference"
        )
    if masked and T % 2:
        raise UserError(
            f"training.attention_kernel cudnn takes packed sequences of an even number of tokens, not {T}: "
            "change data.sequence_length, or use reference"
        )

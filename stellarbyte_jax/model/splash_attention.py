"""Causal attention for TPUs: Pallas' splash kernel, which skips the blocks that nothing can see."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from stellarbyte_jax.errors import UserError

# The kernel works on tiles of this many rows, the width of a TPU's vector registers.
LANES = 128

# Larger blocks keep the matrix units busy, up to what fits beside the accumulators in fast memory.
LARGEST_BLOCK = 512


def splash_attention(
    q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, segment_ids_BT: jax.Array | None, window: int | None
) -> jax.Array:
    """As attention_kernels.attention: [B, K, G, T, H]. Away from a TPU the kernel is interpreted, which is slow.

    Raises:
        UserError: T is not a multiple of 128.
    """
    G, T = q_BKGTH.shape[2:4]
    if T % LANES:
        raise UserError(
            f"training.attention_kernel splash takes sequences of a multiple of {LANES} tokens, not {T}: "
            "change data.sequence_length, or use reference"
        )
    block = next(size for size in (LARGEST_BLOCK, 256, LANES) if T % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = masks.CausalMask((T, T)) if window is None else masks.LocalMask((T, T), (window - 1, 0), 0)

    def attend_by(interpret: bool):  # type: ignore[no-untyped-def]
        kernel = splash.make_splash_mqa_single_device(
            masks.MultiHeadMask([mask] * G), block_sizes=sizes, interpret=interpret
        )

        def one_row(q_KGTH, k_KTH, v_KTH, segment_ids_T):  # type: ignore[no-untyped-def]
            ids = None if segment_ids_T is None else splash.SegmentIds(segment_ids_T, segment_ids_T)
            return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(q_KGTH, k_KTH, v_KTH)

        return jax.vmap(one_row, in_axes=(0, 0, 0, None if segment_ids_BT is None else 0))

    if jax.default_backend() == "tpu":
        return attend_by(interpret=False)(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT).astype(q_BKGTH.dtype)
    return jax.lax.platform_dependent(
        q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, tpu=attend_by(interpret=False), default=attend_by(interpret=True)
    ).astype(q_BKGTH.dtype)

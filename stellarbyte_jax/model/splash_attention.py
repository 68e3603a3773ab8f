"""Causal attention for TPUs: Pallas' splash kernel, which skips the blocks that nothing can see."""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from stellarbyte_jax.errors import UserError
from stellarbyte_jax.model.remat import ATTENTION
from stellarbyte_jax.sharding import Layout

# The kernel works on tiles of this many rows, the width of a TPU's vector registers.
LANES = 128

# Larger blocks keep the matrix units busy, up to what fits beside the accumulators in fast memory.
LARGEST_BLOCK = 512


def splash_attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | None,
    layout: Layout,
    interpret: bool,
) -> jax.Array:
    """As attention_kernels.attention: [B, K, G, T, H]. Away from a TPU the kernel has to be interpreted, which is slow.

    On a mesh each device has rows and kv heads of its own. Where rows are split too, it has all their keys.

    Raises:
        UserError: T is not a multiple of 128 on each device, or the kv heads cannot be shared out.
    """
    K, G, T = q_BKGTH.shape[1:4]
    shards = layout.parts("length")
    if T % (LANES * shards):
        over = "" if shards == 1 else f" on each of mesh.context's {shards} devices"
        raise UserError(
            f"training.attention_kernel splash takes sequences of a multiple of {LANES} tokens{over}, not {T}: "
            "change data.sequence_length, or use reference"
        )
    check_kv_heads(layout, K)
    kernel = _kernel(G, T, window, shards, interpret)

    def attend(kernel, *arrays):  # type: ignore[no-untyped-def]
        def one_row(q_KGTH, k_KSH, v_KSH, ids_T, ids_S):  # type: ignore[no-untyped-def]
            ids = None if ids_T is None else splash.SegmentIds(ids_T, ids_S)
            return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(q_KGTH, k_KSH, v_KSH)

        return jax.vmap(one_row)(*arrays)

    queries = layout.spec("batch", "kv_heads", None, "length")
    keys = layout.spec("batch", "kv_heads")
    ids = layout.spec("batch", "length"), layout.spec("batch")
    mask = None if layout.mesh.size == 1 else kernel.manual_sharding_spec(layout.sharding(None, "length"))
    attend = layout.map(attend, (mask, queries, keys, keys, *ids), queries)
    return attend(kernel, q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT, segment_ids_BT).astype(q_BKGTH.dtype)


def check_kv_heads(layout: Layout, K: int) -> None:
    """Refuses kv heads that cannot be shared out among the devices."""
    if K % layout.parts("kv_heads"):
        axes = " x ".join(f"mesh.{name} {layout.mesh.shape[name]}" for name in layout.mesh_axes("kv_heads"))
        raise UserError(
            f"{axes} does not divide model.num_key_value_heads {K}: choose a size that does, or use "
            "training.attention_kernel reference"
        )


def _kernel(G: int, T: int, window: int | None, shards: int, interpret: bool) -> splash.SplashAttentionKernel:
    block = next(size for size in (LARGEST_BLOCK, 256, LANES) if T // shards % size == 0)
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
    return splash.make_splash_mqa(
        masks.MultiHeadMask([mask] * G),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shards,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )

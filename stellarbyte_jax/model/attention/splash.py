"""Causal attention for TPUs: Pallas' splash kernel, which skips blocks without a visible pair."""

import math

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from stellarbyte.errors import UserError
from stellarbyte_jax.model.attention.shared_rows import CausalRows, SharedRows
from stellarbyte_jax.model.remat import ATTENTION, gathering_again
from stellarbyte_jax.sharding import Layout

# The kernel works on tiles of this many rows, the width of a TPU's vector registers.
LANES = 128


def splash_attention(
    q_BKGTH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    segment_ids_BT: jax.Array | None,
    window: int | None,
    block_size: int,
    layout: Layout,
    interpret: bool,
) -> jax.Array:
    """Attention as kernels.attention describes it: [B, K, G, T, H].

    On a mesh each device works on its own rows and kv heads. If rows are split as well, it gets all keys of its rows.
    Larger blocks, of at most `block_size` tokens, keep the matrix units busy as long as they fit in fast memory.
    interpret: whether the kernel is interpreted, which is slow, and needed on everything but a TPU.

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
    shared = SharedRows.of(layout, T, window, LANES)
    kernel = _kernel(G, T, window, block_of(block_size, T, shared), shared, interpret)

    def attend(kernel, q_BKGTH, k_BKTH, v_BKTH, ids_BT):  # type: ignore[no-untyped-def]
        def one_row(q_KGTH, k_KSH, v_KSH, ids_T, ids_S):  # type: ignore[no-untyped-def]
            ids = None if ids_T is None else splash.SegmentIds(ids_T, ids_S)
            return jax.vmap(lambda q, k, v: kernel(q, k, v, segment_ids=ids))(q_KGTH, k_KSH, v_KSH)

        ids = (None, None) if ids_BT is None else (shared.take(ids_BT, 1), shared.whole(ids_BT, 1))
        out_BKGTH = jax.vmap(one_row)(shared.take(q_BKGTH, 3), shared.whole(k_BKTH, 2), shared.whole(v_BKTH, 2), *ids)
        return shared.put(out_BKGTH, 3)

    queries = layout.spec("batch", "kv_heads", None, "length")
    keys = layout.spec("batch", "kv_heads", "length")
    mask = None if layout.mesh.size == 1 else kernel.manual_sharding_spec(layout.sharding(None, "length"))
    attend = gathering_again(attend) if shared.shards > 1 else attend
    attend = layout.map(attend, (mask, queries, keys, keys, layout.spec("batch", "length")), queries)
    return attend(kernel, q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT).astype(q_BKGTH.dtype)


def check_kv_heads(layout: Layout, K: int) -> None:
    """Raises UserError if the kv heads cannot be shared out among the devices."""
    if K % layout.parts("kv_heads"):
        axes = " x ".join(f"mesh.{name} {layout.mesh.shape[name]}" for name in layout.mesh_axes("kv_heads"))
        raise UserError(
            f"{axes} does not divide model.num_key_value_heads {K}: choose a size that does, or use "
            "training.attention_kernel reference"
        )


def block_of(largest: int, T: int, shared: SharedRows) -> int:
    """The size of blocks for rows of T tokens: the largest of `largest`, its half, its quarter … that divides them."""
    return math.gcd(largest, T // shared.parts)


def _kernel(
    G: int, T: int, window: int | None, block: int, shared: SharedRows, interpret: bool
) -> splash.SplashAttentionKernel:
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
    return splash.make_splash_mqa(
        masks.MultiHeadMask([CausalRows(shared.positions(T), window)] * G),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=shared.shards,
        residual_checkpoint_name=ATTENTION,
        interpret=interpret,
    )

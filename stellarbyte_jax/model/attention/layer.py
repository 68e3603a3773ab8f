"""Grouped-query self-attention: projections and positions around a kernel."""

import jax
import jax.numpy as jnp
from flax import nnx

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.attention.kernels import attention
from stellarbyte_jax.model.caches import LayerCache, NewTokens
from stellarbyte_jax.model.call_context import CallContext, LayerContext
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.linear import Linear
from stellarbyte_jax.model.norm import RMSNorm
from stellarbyte_jax.model.rope import rotate
from stellarbyte_jax.model.taps import tapped_heads

# Kernel -> the number that the length of its sequences must be a multiple of.
_LENGTH_MULTIPLES = {"splash": 128, "cudnn": 2}


class Attention(nnx.Module):
    """Causal self-attention with K key/value heads, each serving G = N / K query heads (Ainslie et al. 2023)."""

    def __init__(
        self,
        config: ByteConfig,
        *,
        value_stddev: float,
        output_stddev: float,
        execution: Execution,
        rngs: nnx.Rngs,
    ) -> None:
        D, N, K, H = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        assert K is not None and H is not None
        stddev = config.initializer_range

        def linear(in_size: int, out_size: int, axes: tuple[str, str], stddev: float) -> Linear:
            return Linear(
                in_size,
                out_size,
                axes=axes,
                stddev=stddev,
                execution=execution,
                rngs=rngs,
                bias=config.attention_bias,
            )

        self.q_proj = linear(D, N * H, ("hidden", "heads"), stddev)
        self.k_proj = linear(D, K * H, ("hidden", "kv_heads"), stddev)
        self.v_proj = linear(D, K * H, ("hidden", "kv_heads"), value_stddev)
        self.o_proj = linear(N * H, D, ("heads", "hidden"), output_stddev)
        self.q_norm = RMSNorm(H, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(H, config.rms_norm_eps) if config.qk_norm else None
        self.num_kv_heads, self.head_dim = K, H
        self.execution = execution
        self.window, self.dropout_rate = config.sliding_window, config.attention_dropout

    def __call__(
        self, x_BTD: jax.Array, context: CallContext, layer: LayerContext, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Attends within the sequence, or to cache and sequence: [B, T, D] -> ([B, T, D], the layer's cache)."""
        tokens = self.new_tokens(x_BTD, context)
        q_BKGTH, k_BKTH, v_BKTH = tokens.q_BKGTH, tokens.k_BKTH, tokens.v_BKTH
        cache, view = layer.cache, context.cache_view
        if cache is None or view is None:
            out_BKGTH = self._attend(q_BKGTH, k_BKTH, v_BKTH, context.segment_ids_BT, dropout_key)
        elif view.fresh:
            out_BKGTH = self._attend_prompt(q_BKGTH, k_BKTH, v_BKTH, context)
            cache = cache.take(tokens, view)
        else:
            out_BKGTH, cache = cache.attend(tokens, view)
        if layer.head_gates_BTN is not None:
            B, T, _ = layer.head_gates_BTN.shape
            gates_BKGT1 = layer.head_gates_BTN.swapaxes(1, 2).reshape(B, self.num_kv_heads, -1, T, 1)
            out_BKGTH = out_BKGTH * gates_BKGT1.astype(out_BKGTH.dtype)
        if layer.taps is not None:
            out_BKGTH = tapped_heads(out_BKGTH, context.real(x_BTD), layer.taps)
        return self._join(out_BKGTH), cache

    def _attend(
        self,
        q_BKGTH: jax.Array,
        k_BKTH: jax.Array,
        v_BKTH: jax.Array,
        segment_ids_BT: jax.Array | None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        return attention(
            q_BKGTH,
            k_BKTH,
            v_BKTH,
            kernel=self.execution.attention_kernel,
            block_size=self.execution.attention_block_size,
            segment_ids_BT=segment_ids_BT,
            window=self.window,
            dropout_rate=self.dropout_rate,
            dropout_key=dropout_key,
            platform=self.execution.platform,
            layout=self.execution.layout,
        )

    def _attend_prompt(
        self, q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, context: CallContext
    ) -> jax.Array:
        """Attends like `_attend`, for any T: tokens are added at the end, where no other token sees them."""
        T, segment_ids_BT = q_BKGTH.shape[3], context.segment_ids_BT
        more = -T % _LENGTH_MULTIPLES.get(self.execution.attention_kernel, 1)
        q_BKGTH, k_BKTH, v_BKTH = (
            jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, more), (0, 0))) for x in (q_BKGTH, k_BKTH, v_BKTH)
        )
        if segment_ids_BT is not None:
            segment_ids_BT = jnp.pad(segment_ids_BT, ((0, 0), (0, more)))
        return self._attend(q_BKGTH, k_BKTH, v_BKTH, segment_ids_BT)[:, :, :, :T]

    def new_tokens(self, x_BTD: jax.Array, context: CallContext) -> NewTokens:
        """Queries, keys and values of hidden states, normalised and turned as attention and caches take them."""
        (B, T, _), K, H = x_BTD.shape, self.num_kv_heads, self.head_dim
        tables = context.tables
        q_BNTH = self.q_proj(x_BTD).reshape(B, T, -1, H).transpose(0, 2, 1, 3)
        k_BKTH = self.k_proj(x_BTD).reshape(B, T, K, H).transpose(0, 2, 1, 3)
        v_BKTH = self.v_proj(x_BTD).reshape(B, T, K, H).transpose(0, 2, 1, 3)
        if self.q_norm is not None and self.k_norm is not None:
            q_BNTH, k_BKTH = self.q_norm(q_BNTH), self.k_norm(k_BKTH)
        unturned_BNTH = q_BNTH * H**-0.5
        if tables is None:
            q_BNTH = unturned_BNTH
        else:
            # The query's tables carry the factor 1/sqrt(H), which then needs no pass of its own.
            q_BNTH = rotate(q_BNTH, tables.q_cos[:, None] * H**-0.5, tables.q_sin[:, None] * H**-0.5)
            k_BKTH = rotate(k_BKTH, tables.k_cos[:, None], tables.k_sin[:, None])
        q_BKGTH, unturned_BKGTH = (x.reshape(B, K, -1, T, H) for x in (q_BNTH, unturned_BNTH))
        return NewTokens(q_BKGTH, k_BKTH, v_BKTH, unturned_BKGTH, context.position_ids_BT, context.rotation)

    def _join(self, out_BKGTH: jax.Array) -> jax.Array:
        B, _, _, T, H = out_BKGTH.shape
        return self.o_proj(out_BKGTH.reshape(B, -1, T, H).transpose(0, 2, 1, 3).reshape(B, T, -1))

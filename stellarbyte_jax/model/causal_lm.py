"""The decoder, and the language model that puts a vocabulary on top of it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.block import Block
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.linear import Linear
from stellarbyte_jax.model.norm import RMSNorm
from stellarbyte_jax.model.rope import RotaryEmbedding


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalLMOutput:
    """float32 logits [B, T, V], and the cache with the new tokens in it where one was given."""

    logits: jax.Array
    cache: KVCache | None = None


class Embedding(nnx.Module):
    """One vector a token."""

    def __init__(self, config: ByteConfig, *, rngs: nnx.Rngs) -> None:
        shape = (config.vocab_size, config.hidden_size)
        embedding_VD = config.initializer_range * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.embedding = nnx.Param(embedding_VD, axes=("vocab", "hidden"))


class ByteDecoder(nnx.Module):
    """Embedding, layers and final norm: token ids to hidden states.

    `dtype` is the compute dtype; parameters are float32. `platform` (default: the one JAX runs on) chooses the kernels.
    """

    def __init__(
        self, config: ByteConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, platform: str | None = None
    ) -> None:
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.platform = platform or jax.default_backend()
        self.embed_tokens = Embedding(config, rngs=rngs)
        self.rotary_emb = RotaryEmbedding(config)

        # All layers as one, with a leading axis L on every parameter.
        @nnx.vmap
        def create_layers(rngs: nnx.Rngs) -> Block:
            return Block(config, dtype=self.dtype, platform=self.platform, rngs=rngs)

        self.layers: Block | nnx.List[Block] = create_layers(rngs.split(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self,
        input_ids: jax.Array,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states of a batch of token ids.

        Args:
            input_ids: int32 [B, T].
            position_ids: int32 [B, T]; by default 0, 1, 2 …, behind what the cache holds.
            segment_ids: int32 [B, T]; tokens see only their own segment. By default each row is one document.
            cache: keys and values to continue from.

        Returns:
            Hidden states [B, T, D] after the final norm, and the cache with the T new tokens, if one was given.
        """
        B, T = input_ids.shape
        if position_ids is None:
            first = 0 if cache is None else cache.length
            position_ids = (first + jnp.arange(T, dtype=jnp.int32))[None]
        tables = self.rotary_emb(position_ids)
        x_BTD = self.embed_tokens.embedding[...].astype(self.dtype)[input_ids]
        if cache is None:
            x_BTD = self._layers(x_BTD, tables, segment_ids)
            return self.norm(x_BTD), None

        if segment_ids is None:
            segment_ids = jnp.ones((B, T), jnp.int32)
        x_BTD, cache = self._layers_with_cache(x_BTD, tables, segment_ids, cache)
        return self.norm(x_BTD), cache

    def _layers(self, x_BTD, tables, segment_ids_BT):  # type: ignore[no-untyped-def]
        graphdef, stacked = nnx.split(self.layers)

        def body(x_BTD, layer):  # type: ignore[no-untyped-def]
            return nnx.merge(graphdef, layer)(x_BTD, tables, segment_ids_BT), None

        # On a CPU a loop keeps XLA from fusing across layers; elsewhere it keeps compile time flat in depth.
        unroll = self.config.num_hidden_layers if self.platform == "cpu" else 1
        return jax.lax.scan(body, x_BTD, stacked, unroll=unroll)[0]

    def _layers_with_cache(self, x_BTD, tables, segment_ids_BT, cache):  # type: ignore[no-untyped-def]
        T, S = x_BTD.shape[1], cache.segment_ids.shape[1]
        cached_segments_BS = cache.append_segments(segment_ids_BT)
        slots_T = cache.length + jnp.arange(T)
        visible_BTS = (jnp.arange(S) <= slots_T[:, None]) & (
            segment_ids_BT[:, :, None] == cached_segments_BS[:, None, :]
        )
        keys, values = [], []
        for layer, block in enumerate(self._blocks()):
            x_BTD, (k_BKSH, v_BKSH) = block.with_cache(x_BTD, tables, visible_BTS, cache, layer)
            keys.append(k_BKSH)
            values.append(v_BKSH)
        return x_BTD, KVCache(tuple(keys), tuple(values), cached_segments_BS, cache.length + T)

    def unstack(self) -> "ByteDecoder":
        """The same decoder with arrays of its own for each layer.

        A decoding loop reads these in place, while it would copy a slice of stacked ones for every token.
        """
        graphdef, state = nnx.split(self)
        decoder = nnx.merge(graphdef, state)
        decoder.layers = nnx.List(self._blocks())
        return decoder

    def _blocks(self) -> list[Block]:
        if not isinstance(self.layers, Block):
            return list(self.layers)
        graphdef, stacked = nnx.split(self.layers)
        return [
            nnx.merge(graphdef, jax.tree.map(lambda p, layer=layer: p[layer], stacked))
            for layer in range(self.config.num_hidden_layers)
        ]


class ByteForCausalLM(nnx.Module):
    """StellarByte's language model: ByteDecoder and the projection to the vocabulary."""

    def __init__(
        self, config: ByteConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, platform: str | None = None
    ) -> None:
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.model = ByteDecoder(config, rngs=rngs, dtype=dtype, platform=platform)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(
                config.hidden_size,
                config.vocab_size,
                axes=("hidden", "vocab"),
                stddev=config.initializer_range,
                dtype=self.dtype,
                rngs=rngs,
            )

    def __call__(
        self,
        input_ids: jax.Array,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
    ) -> CausalLMOutput:
        """Next-token logits; arguments as in ByteDecoder."""
        hidden_BTD, cache = self.model(input_ids, position_ids, segment_ids, cache)
        return CausalLMOutput(self.logits(hidden_BTD), cache)

    def unstack(self) -> "ByteForCausalLM":
        """The same model, made for decoding: see ByteDecoder.unstack."""
        graphdef, state = nnx.split(self)
        model = nnx.merge(graphdef, state)
        model.model = self.model.unstack()
        return model

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """float32 logits [B, T, V] of hidden states."""
        B, T, D = hidden_BTD.shape
        head, axes = self.head
        logits_MV = jnp.einsum(f"MD,{axes}->MV", hidden_BTD.reshape(-1, D), head, preferred_element_type=jnp.float32)
        return logits_MV.reshape(B, T, -1)

    @property
    def head(self) -> tuple[jax.Array, str]:
        """The projection to the vocabulary in the compute dtype, and its axes: "VD" if it is the embedding, or "DV"."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.embedding[...].astype(self.dtype), "VD"
        return self.lm_head.kernel[...].astype(self.dtype), "DV"


ByteModel = ByteForCausalLM

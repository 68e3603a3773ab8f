"""The decoder, and the language model that puts a vocabulary on top of it."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.block import RESIDUAL, Block
from stellarbyte_jax.model.caches import Cache
from stellarbyte_jax.model.call_context import CallContext, LayerContext
from stellarbyte_jax.model.dropout import dropout
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.experts.moe import RouterStats
from stellarbyte_jax.model.feed_forward import cut_to_width, keep_widths
from stellarbyte_jax.model.int8 import Int8Embedding, Int8Linear, layers_in_int8
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.linear import Linear
from stellarbyte_jax.model.norm import RMSNorm
from stellarbyte_jax.model.remat import rematerialized
from stellarbyte_jax.model.rope import RotaryEmbedding
from stellarbyte_jax.model.taps import Taps


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CausalLMOutput:
    """float32 logits [B, T, V], the cache with the new tokens if one was given, and the routers' statistics."""

    logits: jax.Array
    cache: Cache | None = None
    router: RouterStats | None = None


class Embedding(nnx.Module):
    """The table of token embeddings, one vector for each token."""

    def __init__(self, config: ByteConfig, *, rngs: nnx.Rngs) -> None:
        shape = (config.vocab_size, config.hidden_size)
        embedding_VD = config.initializer_range * jax.random.normal(rngs.params(), shape, jnp.float32)
        self.embedding = nnx.Param(embedding_VD, axes=("vocab", "hidden"), decays=True)

    def __call__(self, input_ids: jax.Array, dtype: DTypeLike) -> jax.Array:
        """The embeddings of tokens: int32 [...] -> [..., D]."""
        return self.embedding[...].astype(dtype)[input_ids]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecoderOutput:
    """Hidden states [B, T, D] after the final norm, the cache as above, and the routers' statistics, stacked over L."""

    hidden: jax.Array
    cache: Cache | None = None
    router: RouterStats | None = None


class ByteDecoder(nnx.Module):
    """The decoder, from token ids to hidden states: embedding, layers and final norm."""

    def __init__(self, config: ByteConfig, *, execution: Execution | None = None, rngs: nnx.Rngs) -> None:
        execution = (execution or Execution()).resolved(config)
        self.config, self.execution, self.stochastic = config, execution, config.stochastic
        self.embed_tokens: Embedding | Int8Embedding = Embedding(config, rngs=rngs)
        self.rotary_emb = None if config.position_embedding == "none" else RotaryEmbedding(config)

        # All layers are one module, with a leading axis L on every parameter.
        @nnx.vmap
        def create_layers(rngs: nnx.Rngs) -> Block:
            return Block(config, execution=execution, rngs=rngs)

        self.layers: Block | nnx.List[Block] = create_layers(rngs.split(config.num_hidden_layers))
        if not isinstance(config.intermediate_size, int):
            keep_widths(self.layers, config.intermediate_sizes)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def __call__(
        self,
        input_ids: jax.Array,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
        taps: Taps | None = None,
        *,
        training: bool = False,
    ) -> DecoderOutput:
        """Hidden states of a batch of token ids.

        Args:
            input_ids: int32 [B, T].
            position_ids: int32 [B, T]; by default they count on from the tokens in the cache, or from 0.
            segment_ids: int32 [B, T]; a token sees only its own segment, and 0 is padding. By default each row is one
                segment.
            cache: the keys and values of earlier tokens.
            dropout_key: the key that dropout and DropPath draw from; without it nothing is dropped.
            taps: what is measured in the backward pass.
            training: whether experts are limited to their capacity.
        """
        T = input_ids.shape[1]
        if position_ids is None:
            position_ids = jnp.arange(T, dtype=jnp.int32)[None] if cache is None else cache.next_positions(T)
        tables = None if self.rotary_emb is None else self.rotary_emb(position_ids)
        embedding_key = layers_key = None
        if dropout_key is not None and self.stochastic:
            embedding_key, layers_key = jax.random.split(dropout_key)
        x_BTD = self.embed_tokens(input_ids, self.execution.dtype)
        x_BTD = self.execution.layout.constrain(dropout(x_BTD, self.config.hidden_dropout, embedding_key), *RESIDUAL)
        per_layer = self._per_layer(layers_key, taps)
        if cache is None:
            context = CallContext(tables, segment_ids, None, training)
            through = self._scan_layers if isinstance(self.layers, Block) else self._layers_in_turn
            x_BTD, router = through(x_BTD, context, per_layer)
            return DecoderOutput(self.norm(x_BTD), None, router)

        rotation = None if self.rotary_emb is None else self.rotary_emb.rotation
        view = cache.view(T, segment_ids)
        context = CallContext(tables, segment_ids, view, training, position_ids, rotation)
        x_BTD, cache = self._layers_with_cache(x_BTD, context, per_layer, cache)
        return DecoderOutput(self.norm(x_BTD), cache)

    def _per_layer(self, key: jax.Array | None, taps: Taps | None) -> LayerContext:
        """Stacked values that differ between layers; DropPath's rate rises from 0 to `drop_path_rate` with depth."""
        config, L, N = self.config, self.config.num_hidden_layers, self.config.num_attention_heads
        rates_L = kept_L11N = None
        if config.drop_path_rate and key is not None:
            rates_L = jnp.linspace(0.0, config.drop_path_rate, L, dtype=jnp.float32)
        if config.pruned_heads is not None:
            kept_LN = [[float(head not in gone) for head in range(N)] for gone in config.pruned_heads]
            kept_L11N = jnp.asarray(kept_LN)[:, None, None]
        return LayerContext(rates_L, None if key is None else jax.random.split(key, L), kept_L11N, taps=taps)

    def _scan_layers(
        self, x_BTD: jax.Array, context: CallContext, per_layer: LayerContext
    ) -> tuple[jax.Array, RouterStats | None]:
        graphdef, stacked = nnx.split(self.layers)

        def body(x_BTD, inputs):  # type: ignore[no-untyped-def]
            params, layer = inputs
            block = nnx.merge(graphdef, params)
            block.set_attributes(dropout_key=layer.dropout_key, raise_if_not_found=False)  # for adapters, if any
            output = block(x_BTD, context, layer)
            return output.x_BTD, output.router

        # On a CPU a loop would keep XLA from fusing across layers; elsewhere it keeps compile time flat in depth.
        unroll = self.config.num_hidden_layers if self.execution.platform == "cpu" else 1
        body = rematerialized(body, self.execution.remat, in_a_loop=unroll == 1)
        return jax.lax.scan(body, x_BTD, (stacked, per_layer), unroll=unroll)

    def _layers_in_turn(
        self, x_BTD: jax.Array, context: CallContext, per_layer: LayerContext
    ) -> tuple[jax.Array, RouterStats | None]:
        routers = []
        for index, block in enumerate(self._blocks()):
            x_BTD, _, router = block(x_BTD, context, jax.tree.map(lambda leaf, index=index: leaf[index], per_layer))
            routers.append(router)
        return x_BTD, jax.tree.map(lambda *each: jnp.stack(each), *routers)

    def _layers_with_cache(
        self, x_BTD: jax.Array, context: CallContext, per_layer: LayerContext, cache: Cache
    ) -> tuple[jax.Array, Cache]:
        layers = []
        for index, (block, layer_cache) in enumerate(zip(self._blocks(), cache.layers, strict=True)):
            layer = jax.tree.map(lambda leaf, index=index: leaf[index], per_layer)
            output = block(x_BTD, context, dataclasses.replace(layer, cache=layer_cache))
            assert output.cache is not None
            x_BTD = output.x_BTD
            layers.append(output.cache)
        assert context.cache_view is not None
        return x_BTD, cache.advanced(tuple(layers), context.cache_view)

    def unstack(self) -> "ByteDecoder":
        """The same decoder with separate arrays for each layer.

        A decoding loop reads these in place; of stacked arrays it would copy a slice for every token.
        """
        graphdef, state = nnx.split(self)
        decoder = nnx.merge(graphdef, state)
        decoder.layers = nnx.List(self._blocks())
        return decoder

    def _blocks(self) -> list[Block]:
        if not isinstance(self.layers, Block):
            return list(self.layers)
        graphdef, stacked = nnx.split(self.layers)
        blocks = [
            nnx.merge(graphdef, jax.tree.map(lambda p, layer=layer: p[layer], stacked))
            for layer in range(self.config.num_hidden_layers)
        ]
        if not isinstance(self.config.intermediate_size, int):
            for block, width in zip(blocks, self.config.intermediate_sizes, strict=True):
                cut_to_width(block, width)
        return blocks


class ByteForCausalLM(nnx.Module):
    """StellarByte's language model: ByteDecoder and the projection to the vocabulary."""

    def __init__(self, config: ByteConfig, *, execution: Execution | None = None, rngs: nnx.Rngs) -> None:
        self.config = config
        self.model = ByteDecoder(config, execution=execution, rngs=rngs)
        self.execution = self.model.execution
        if not config.tie_word_embeddings:
            D, V, stddev = config.hidden_size, config.vocab_size, config.initializer_range
            axes = ("hidden", "vocab")
            head = Linear(D, V, axes=axes, stddev=stddev, execution=self.execution, rngs=rngs)
            self.lm_head: Linear | Int8Linear = head

    def __call__(
        self,
        input_ids: jax.Array,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        cache: Cache | None = None,
        dropout_key: jax.Array | None = None,
        *,
        training: bool = False,
    ) -> CausalLMOutput:
        """The logits of the next tokens; arguments are those of ByteDecoder."""
        output = self.model(input_ids, position_ids, segment_ids, cache, dropout_key, training=training)
        return CausalLMOutput(self.logits(output.hidden), output.cache, output.router)

    def forward_step(
        self,
        x_t: jax.Array,
        past_k: tuple[jax.Array, ...] | None = None,
        past_v: tuple[jax.Array, ...] | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        """One step, for those who write their own decoding loop.

        Args:
            x_t: token ids [B, T]; first a prompt, then usually one token.
            past_k: keys that the last step returned, for each layer [B, K, S, H] of the S tokens so far; None at the
                start. All are kept, even those that a sliding window no longer sees: S is the position of x_t.
            past_v: values, in the same form.

        Returns:
            float32 logits [B, T, V], and keys and values of the S + T tokens. A KVCache, whose arrays do not grow,
            decodes without compiling anew for each S.
        """
        B, T = x_t.shape
        if past_k is None or past_v is None:
            assert past_k is None and past_v is None
            cache = KVCache.create(self.config, B, T, self.execution.dtype, slack=T)
        else:
            cache = KVCache.of(self.config, past_k, past_v, room=T)
        output = self(x_t, cache=cache)
        assert output.cache is not None
        layers = output.cache.layers
        return output.logits, tuple(x.keys.data for x in layers), tuple(x.values.data for x in layers)

    def unstack(self) -> "ByteForCausalLM":
        """The same model with separate arrays for each layer, for decoding: see ByteDecoder.unstack."""
        graphdef, state = nnx.split(self)
        model = nnx.merge(graphdef, state)
        model.model = self.model.unstack()
        return model

    def in_int8(self) -> "ByteForCausalLM":
        """The same model with the matrices of its layers and its head in int8, for generating text: see int8.py.

        Embeddings are in int8 if they are the head as well; the router and what is no matrix stay float32.
        """
        graphdef, state = nnx.split(self)
        model = nnx.merge(graphdef, state)
        if not isinstance(self.config.intermediate_size, int):
            model.model = self.model.unstack()  # a stack in int8 could not be cut to each layer's width any more
        layers_in_int8(model.model.layers)
        if isinstance(model.model.embed_tokens, Embedding) and self.config.tie_word_embeddings:
            model.model.embed_tokens = Int8Embedding(model.model.embed_tokens.embedding[...])
        elif isinstance(model.lm_head, Linear):
            model.lm_head = Int8Linear(model.lm_head)
        return model

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """The float32 logits [B, T, V] of hidden states."""
        B, T, D = hidden_BTD.shape
        hidden_MD = hidden_BTD.reshape(-1, D)
        module = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        if isinstance(module, Int8Embedding | Int8Linear):
            return module.weights.product(hidden_MD).reshape(B, T, -1)
        head, axes = self.head
        logits_MV = jnp.einsum(f"MD,{axes}->MV", hidden_MD, head, preferred_element_type=jnp.float32)
        return logits_MV.reshape(B, T, -1)

    @property
    def head(self) -> tuple[jax.Array, str]:
        """(the head's matrix in the compute dtype, its axes): "VD" if it is the embedding, else "DV"; not in int8."""
        if self.config.tie_word_embeddings:
            assert isinstance(self.model.embed_tokens, Embedding)
            return self.model.embed_tokens.embedding[...].astype(self.execution.dtype), "VD"
        assert isinstance(self.lm_head, Linear)
        return self.lm_head.kernel[...].astype(self.execution.dtype), "DV"


ByteModel = ByteForCausalLM

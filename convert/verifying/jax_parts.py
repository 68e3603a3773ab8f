"""The parts of a JAX model as functions of one layer's Hugging Face tensors, so that no more need be in memory."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert import names, weights
from convert.names import HFTensor
from stellarbyte.architecture import ByteConfig
from stellarbyte_jax.model.block import Block
from stellarbyte_jax.model.call_context import CallContext, LayerContext
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.model.execution import Execution
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.model.rope import RotaryTables

# The tensors of a layer, by their keys without the layer's number; always in Hugging Face's own layout.
Arrays = Mapping[str, jax.Array]

_NOTHING_DROPPED = LayerContext(None, None, None)


class Chosen(NamedTuple):
    """Hidden states [B, S, D] after the final norm; the likeliest tokens [B, S], and how far others are behind them."""

    hidden_BSD: jax.Array
    tokens_BS: jax.Array
    behind_BS: jax.Array
    largest: jax.Array


class HeadGradients(NamedTuple):
    """The gradients of the loss in the final norm's scale, in what it is given, and in the logits that follow.

    hidden_BCD: the hidden states that the logits are made of.
    """

    in_scale: jax.Array
    in_x_BCD: jax.Array
    in_logits_BCV: jax.Array
    hidden_BCD: jax.Array


class Parts:
    """The modules of a model of this config, without any weights, and the functions that are compiled of them.

    tensors: the tensors of each layer. Zeros are put where Hugging Face has no weights: at pruned heads, and at
        channels behind a layer's width.
    """

    def __init__(self, config: ByteConfig) -> None:
        execution = Execution(platform="cpu")
        model = nnx.eval_shape(lambda: ByteForCausalLM(config, execution=execution, rngs=nnx.Rngs(0)))
        decoder = model.model
        self._config, self._shapes = config, names.jax_shapes(config)
        self._block, self._norm = nnx.split(decoder.layers)[0], nnx.split(decoder.norm)[0]
        self._rotary = None if decoder.rotary_emb is None else nnx.split(decoder.rotary_emb)[0]
        # For a cache of one layer.
        self._one_layer = replace(config, num_hidden_layers=1, pruned_heads=None, intermediate_size=1)
        self.tensors: dict[int, list[HFTensor]] = defaultdict(list)
        for tensor in names.hf_tensors(config):
            if tensor.layer is not None:
                self.tensors[tensor.layer].append(tensor)
        self.tables, self.norm, self.logits = jax.jit(self._tables), jax.jit(self._normed), jax.jit(self._logits)
        self.chosen = jax.jit(self._chosen)
        self.head_gradients, self.head_strip = jax.jit(self._head_gradients), jax.jit(_head_strip)
        self._of_layers: dict[Any, Callable[..., Any]] = {}

    def layer(self, number: int) -> Callable[..., Any]:
        """(arrays, x, tables, segment ids) -> the hidden states [B, T, D] after a layer."""
        return self._compiled(self._layer, number)

    def layer_gradients(self, number: int) -> Callable[..., Any]:
        """As `layer`, and the gradient in its result -> gradients in (the arrays, x, the tables).

        The gradients take the place of the arrays, which are gone.
        """
        return self._compiled(self._layer_gradients, number, donate_argnums=0)

    def cached_layer(self, number: int) -> Callable[..., Any]:
        """A layer on prompts, whose keys and values a cache takes, and then on S tokens of each, one by one.

        (arrays, prompts [B, T, D], tokens [S, B, 1, D], the tables of both, the prompts' segment ids) -> both.
        """
        return self._compiled(self._cached_layer, number)

    def _compiled(self, part: Callable[..., Any], number: int, **options: Any) -> Callable[..., Any]:
        """One function serves all layers of the same heads and the same width: nothing else tells them apart."""
        pruned = self._config.pruned_heads[number] if self._config.pruned_heads else ()
        key = (part.__name__, pruned, self._config.intermediate_sizes[number])
        if key not in self._of_layers:
            self._of_layers[key] = jax.jit(partial(part, self.tensors[number]), **options)
        return self._of_layers[key]

    def _tables(self, zeta: jax.Array | None, position_ids: jax.Array) -> RotaryTables | None:
        """What turns queries and keys at positions [B, T]; `zeta` is given if it is learnt."""
        if self._rotary is None:
            return None
        tables: RotaryTables = nnx.merge(self._rotary, {} if zeta is None else {"zeta": zeta})(position_ids)
        return tables

    def _layer(
        self,
        tensors: Sequence[HFTensor],
        arrays: Arrays,
        x_BTD: jax.Array,
        tables: RotaryTables | None,
        segment_ids: jax.Array,
    ) -> jax.Array:
        context = CallContext(tables, segment_ids, None, training=False)
        return self._merged(tensors, arrays)(x_BTD, context, _NOTHING_DROPPED).x_BTD

    def _layer_gradients(
        self,
        tensors: Sequence[HFTensor],
        arrays: Arrays,
        x_BTD: jax.Array,
        tables: RotaryTables | None,
        segment_ids: jax.Array,
        out_BTD: jax.Array,
    ) -> Any:
        def layer(arrays: Arrays, x_BTD: jax.Array, tables: RotaryTables | None) -> jax.Array:
            return self._layer(tensors, arrays, x_BTD, tables, segment_ids)

        return jax.vjp(layer, arrays, x_BTD, tables)[1](out_BTD)

    def _cached_layer(
        self,
        tensors: Sequence[HFTensor],
        arrays: Arrays,
        prompt_BTD: jax.Array,
        x_SB1D: jax.Array,
        prompt_tables: RotaryTables | None,
        tables_S: RotaryTables | None,
        segment_ids: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        block, (B, T, _), S = self._merged(tensors, arrays), prompt_BTD.shape, len(x_SB1D)

        def step(cache: KVCache, x_BTD: jax.Array, tables: Any, segment_ids: Any) -> tuple[KVCache, jax.Array]:
            view = cache.view(x_BTD.shape[1], segment_ids)
            context = CallContext(tables, segment_ids, view, training=False)
            output = block(x_BTD, context, replace(_NOTHING_DROPPED, cache=cache.layers[0]))
            assert output.cache is not None
            return cache.advanced((output.cache,), view), output.x_BTD

        cache = KVCache.create(self._one_layer, B, T + S)
        cache, prompt_BTD = step(cache, prompt_BTD, prompt_tables, segment_ids)
        _, x_SB1D = jax.lax.scan(lambda cache, given: step(cache, *given, None), cache, (x_SB1D, tables_S))
        return prompt_BTD, x_SB1D

    def _normed(self, scale: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """The final norm."""
        normed: jax.Array = nnx.merge(self._norm, {"scale": scale})(x_BTD)
        return normed

    def _logits(self, head_VD: jax.Array, hidden_BTD: jax.Array) -> jax.Array:
        """Logits [B, T, V] of hidden states after the final norm."""
        return jnp.einsum("BTD,VD->BTV", hidden_BTD, head_VD, preferred_element_type=jnp.float32)

    def _chosen(self, scale: jax.Array, head_VD: jax.Array, x_BSD: jax.Array, read_BS: jax.Array) -> Chosen:
        """The likeliest tokens after hidden states before the final norm, and how far the tokens `read` are behind."""
        hidden_BSD = self._normed(scale, x_BSD)

        def choose(given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
            hidden_BD, read_B = given
            logits_BV = self._logits(head_VD, hidden_BD[:, None])[:, 0]
            read = jnp.take_along_axis(logits_BV, read_B[:, None], axis=1)[:, 0]
            return logits_BV.argmax(axis=1), logits_BV.max(axis=1) - read, jnp.abs(logits_BV).max()

        # One place after another: the logits of all of them would be larger than the model.
        tokens_SB, behind_SB, largest_S = jax.lax.map(choose, (hidden_BSD.swapaxes(0, 1), read_BS.T))
        return Chosen(hidden_BSD, tokens_SB.T, behind_SB.T, largest_S.max())

    def _head_gradients(
        self, scale: jax.Array, head_VD: jax.Array, x_BCD: jax.Array, labels_BC: jax.Array
    ) -> HeadGradients:
        """Of the mean loss of the labels by hidden states before the final norm."""
        hidden_BCD, through_norm = jax.vjp(self._normed, scale, x_BCD)
        logits_BCV, through_head = jax.vjp(partial(self._logits, head_VD), hidden_BCD)
        in_logits_BCV = jax.grad(_loss)(logits_BCV, labels_BC)
        in_scale, in_x_BCD = through_norm(through_head(in_logits_BCV)[0])
        return HeadGradients(in_scale, in_x_BCD, in_logits_BCV, hidden_BCD)

    def _merged(self, tensors: Sequence[HFTensor], arrays: Arrays) -> Block:
        leaves = {}
        for tensor in tensors:
            values = arrays[name_in_layer(tensor)]
            if tensor.transpose:  # XLA multiplies by a transposed matrix without making it
                values = values.swapaxes(-1, -2)
            shape = self._shapes[tensor.path][1:]
            if values.shape != shape:
                kept = tuple(np.asarray(axis) if isinstance(axis, list) else axis for axis in tensor.kept)
                values = jnp.zeros(shape, values.dtype).at[kept].set(values)
            leaves[tensor.path[2:]] = values  # without model/layers
        block: Any = nnx.merge(self._block, weights.unflatten(leaves))
        return block


def _loss(logits_BCV: jax.Array, labels_BC: jax.Array) -> jax.Array:
    """The mean cross-entropy of the labels, -100 left out."""
    counted = labels_BC >= 0
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits_BCV), jnp.maximum(labels_BC, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(counted, picked, 0.0)) / counted.sum()


def _head_strip(in_logits_BCV: jax.Array, hidden_BCD: jax.Array) -> jax.Array:
    """The gradients [V, D] in the rows of a head that make these logits."""
    return jnp.einsum("BCV,BCD->VD", in_logits_BCV, hidden_BCD, preferred_element_type=jnp.float32)


@lru_cache(maxsize=2)
def parts_of(config: ByteConfig) -> Parts:
    """The parts of a model of this config. What is compiled for one comparison serves the next."""
    return Parts(config)


def name_in_layer(tensor: HFTensor) -> str:
    """The key of a layer's tensor without the layer's number."""
    return tensor.key.removeprefix(f"model.layers.{tensor.layer}.")

"""Everything that parity needs of a model in JAX, by one compiled program and a decoding step."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from convert.weights import Params
from stellarbyte_jax.config import ByteConfig
from stellarbyte_jax.model.kv_cache import KVCache
from stellarbyte_jax.training.loss import token_loss
from stellarbyte_jax.training.router_loss import router_loss, router_sums
from stellarbyte_jax.training.state import abstract_model

Batch = dict[str, np.ndarray]


class JaxModel:
    """A model with its parameters; `training` holds experts to their capacity, and drops nothing for all that."""

    def __init__(self, config: ByteConfig, params: Params) -> None:
        self.config, self.params = config, jax.tree.map(np.asarray, params)
        self.graphdef = abstract_model(config)[0]
        self._run = jax.jit(self._forward_and_backward, static_argnames="training")
        self._forward = jax.jit(lambda params, batch: self._decode(params, batch)[0])
        self._step = jax.jit(self._decode)

    def _forward_and_backward(
        self, params: Params, batch: Batch, loss_weight: float, weights_BTV: jax.Array, training: bool
    ) -> Any:
        B, T = batch["input_ids"].shape

        def objective(params: Params, embeddings_shift_BTD: jax.Array) -> Any:
            model, decoder = nnx.merge(self.graphdef, params), nnx.merge(self.graphdef, params).model
            embeddings_BTD = model.model.embed_tokens.embedding[...][batch["input_ids"]] + embeddings_shift_BTD
            # Each position looks up a row of its own, so that gradients tell the positions apart.
            decoder.embed_tokens.embedding = nnx.Param(embeddings_BTD.reshape(B * T, -1))
            own_ids_BT = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)
            output = decoder(own_ids_BT, batch["position_ids"], batch["segment_ids"], training=training)
            sums = token_loss(output.hidden, model.head[0], batch["labels"], model.head[1])
            loss, dropped = sums.loss / sums.tokens, jnp.zeros(())
            if output.router is not None:
                routers = router_sums(output.router, batch)
                loss, dropped = loss + router_loss(self.config, routers, batch), routers.dropped
            logits_BTV = model.logits(output.hidden)
            return loss_weight * loss + jnp.sum(weights_BTV * logits_BTV), (logits_BTV, loss, dropped)

        shift_BTD = jnp.zeros((B, T, self.config.hidden_size))
        return jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(params, shift_BTD)

    def loss(self, batch: Batch, training: bool = False) -> tuple[np.ndarray, float, float, Params]:
        """Logits [B, T, V], the training loss, choices dropped for want of capacity, and the parameters' gradients."""
        weights_BTV = np.zeros((*batch["input_ids"].shape, self.config.vocab_size), np.float32)
        (_, (logits, loss, dropped)), (gradients, _) = self._run(self.params, batch, 1.0, weights_BTV, training)
        return np.asarray(logits), float(loss), float(dropped), gradients

    def logits(self, batch: Batch, params: Params | None = None) -> np.ndarray:
        """Logits [B, T, V], by other parameters of the same shapes if given; quicker to compile than `loss`."""
        return np.asarray(self._forward(self.params if params is None else params, batch))

    def embedding_gradient(self, batch: Batch, weights_BTV: np.ndarray) -> np.ndarray:
        """d(sum of weights · logits) / d(the embedding of each position): [B, T, D]."""
        return np.asarray(self._run(self.params, batch, 0.0, weights_BTV, False)[1][1])

    def _decode(self, params: Params, batch: Batch, cache: KVCache | None = None) -> Any:
        model = nnx.merge(self.graphdef, params)
        output = model(batch["input_ids"], batch["position_ids"], batch["segment_ids"], cache)
        return output.logits, output.cache

    def decode(self, batch: Batch, pieces: Sequence[int], fresh: bool = True) -> np.ndarray:
        """Logits [B, T, V] of tokens that come in pieces of so many, and see what came before in a cache.

        A cache that is not fresh may hold something already: another program than the one for prompts.
        """
        B, T = batch["input_ids"].shape
        cache, logits, start = dataclasses.replace(KVCache.create(self.config, B, T), fresh=fresh), [], 0
        for piece in pieces:
            part = {name: array[:, start : start + piece] for name, array in batch.items()}
            step_logits, cache = self._step(self.params, part, cache)
            logits.append(np.asarray(step_logits))
            start += piece
        return np.concatenate(logits, axis=1)

"""Looks inside a run's model while it reads a text."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte.pruning.scores import worth_of_heads
from stellarbyte.report.attention_sums import AttentionSums
from stellarbyte.report.measurements import AttentionFacts
from stellarbyte_jax.evaluation.scorer import JaxScorer
from stellarbyte_jax.model.attention.chunked import visible
from stellarbyte_jax.model.attention.layer import Attention
from stellarbyte_jax.model.call_context import CallContext, LayerContext
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from stellarbyte_jax.training.importance import measure_importance


class JaxReader:
    """A run's model; see stellarbyte.report.on_text.Reader."""

    def __init__(self, scorer: JaxScorer) -> None:
        self.scorer = scorer
        self._config = nnx.merge(scorer.graphdef, scorer.params).config

    def attention(self, ids_T: np.ndarray, texts: Sequence[str]) -> AttentionFacts:
        """See Reader."""
        config, sums = self._config, AttentionSums(self._config.num_attention_heads)
        program = jax.jit(functools.partial(_attention, self.scorer.graphdef))
        found = program(self.scorer.params, ids_T[None].astype(np.int32))
        for layer, weights_NTS in enumerate(found):
            gone = () if config.pruned_heads is None else config.pruned_heads[layer]
            there = [head for head in range(config.num_attention_heads) if head not in gone]
            sums.add(np.asarray(weights_NTS)[there], there)
        return sums.facts(texts)

    def heads(self, rows: Sequence[np.ndarray]) -> tuple[tuple[float | None, ...], ...]:
        """See Reader."""
        # Rows are filled up to one length, for which one program is compiled; nothing is asked of what is added.
        longest = max(map(len, rows)) - 1

        def filled(ids: np.ndarray, value: int) -> np.ndarray:
            return np.pad(ids.astype(np.int32), (0, longest - len(ids)), constant_values=value)[None]

        batches = ({"input_ids": filled(row[:-1], 0), "labels": filled(row[1:], IGNORED_LABEL)} for row in rows)
        found = measure_importance(self.scorer.graphdef, self.scorer.params, batches)
        return worth_of_heads(found, self._config.pruned_heads)


class _Observed(nnx.Module):
    """Attention that also says where it looks: its weights [N, T, S] of the only row are appended to a list."""

    def __init__(self, attention: Attention, found: list[jax.Array]) -> None:
        self.attention = attention
        self._tell = found.append

    def __call__(
        self, x_BTD: jax.Array, context: CallContext, layer: LayerContext, dropout_key: jax.Array | None
    ) -> Any:
        attention, tokens = self.attention, self.attention.new_tokens(x_BTD, context)
        scores_BKGTS = jnp.einsum(
            "BKGTH,BKSH->BKGTS", tokens.q_BKGTH, tokens.k_BKTH, preferred_element_type=jnp.float32
        )
        _, _, _, T, S = scores_BKGTS.shape
        visible_TS = visible(0, 0, T, None, attention.window)[0]
        weights_BKGTS = jax.nn.softmax(jnp.where(visible_TS, scores_BKGTS, -jnp.inf))
        self._tell(weights_BKGTS[0].reshape(-1, T, S))
        return attention(x_BTD, context, layer, dropout_key)


def _attention(graphdef: nnx.GraphDef[ByteForCausalLM], params: Any, ids_1T: jax.Array) -> list[jax.Array]:
    """The attention weights of each layer, float32 [N, T, T]."""
    decoder = nnx.merge(graphdef, params).model.unstack()
    found: list[jax.Array] = []
    assert isinstance(decoder.layers, nnx.List)
    for block in decoder.layers:
        block.self_attn = _Observed(block.self_attn, found)  # type: ignore[assignment]
    decoder(ids_1T)
    return found

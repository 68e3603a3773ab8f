"""A run's model as a memory uses it."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte.files import sha256_of_json
from stellarbyte.memory.reader import MIDDLE_SHARE, Reader, middle
from stellarbyte.places import Place
from stellarbyte_jax.checkpoints.checkpoint import fingerprint
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.inference.prompts import pad_right
from stellarbyte_jax.model.causal_lm import ByteForCausalLM

# Rows and lengths are filled up to few sizes, so that little is compiled: 1 or 16 rows of 32, 128 or 512 tokens.
_SHORTEST, _STEP = 32, 4
_ROWS = 16


class JaxReader(Reader):
    """Reads texts with a run's model.

    Args:
        model: the model, with its compute dtype.
        tokenizer: the tokenizer that the model was trained with.
        name: the model's name, for people.
        weights: a hash of the weights.
    """

    def __init__(self, model: ByteForCausalLM, tokenizer: Tokenizer, name: str, weights: str) -> None:
        config = model.config
        layer, begin = middle(config.num_hidden_layers), tokenizer.bos_token_id
        hash = sha256_of_json(
            {"embeddings and layer": layer, "begin": begin, "weights": weights, "tokenizer": tokenizer.sha256}
        )
        super().__init__(name, hash, layer, config.hidden_size, config.context_length, begin)
        self._graphdef, self._state = nnx.split(model)
        self._tokenizer, self._pad = tokenizer, config.pad_token_id
        self._sums = jax.jit(partial(_sums, self._graphdef, layer))
        self._loss = jax.jit(partial(_loss, self._graphdef))

    def tokens(self, text: str) -> list[int]:
        """See Reader."""
        return self._tokenizer.encode(text)

    def sums(self, rows: Sequence[Sequence[int]], weights: Sequence[Sequence[float]]) -> np.ndarray:
        """See Reader; the layers after the middle one are not computed."""
        found = [np.zeros((0, self.size), np.float32)]
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            filled = [*some, *[some[0][:1]] * (_ROWS - len(some))] if len(some) > 1 else some
            input_ids_BT, segment_ids_BT = pad_right(filled, self._pad, self._room)
            weights_BT = np.zeros(input_ids_BT.shape, np.float32)
            for number, row in enumerate(weights[start : start + len(some)]):
                weights_BT[number, : len(row)] = row
            found.append(np.asarray(self._sums(self._state, input_ids_BT, segment_ids_BT, weights_BT))[: len(some)])
        return np.concatenate(found)

    def loss(self, row: Sequence[int], first: int) -> float:
        """See Reader."""
        input_ids_1T, segment_ids_1T = pad_right([row], self._pad, self._room)
        counted_1T = segment_ids_1T.astype(np.float32)
        counted_1T[:, :first] = 0
        return float(self._loss(self._state, input_ids_1T, segment_ids_1T, counted_1T))

    def _room(self, length: int) -> int:
        room = _SHORTEST
        while room < length:
            room *= _STEP
        return min(room, self.window)


def reader_of(model: ByteForCausalLM, tokenizer: Tokenizer, run_dir: Place, step: int) -> JaxReader:
    """The model and tokenizer of a run's checkpoint, once they are loaded, as a reader."""
    return JaxReader(model, tokenizer, f"{run_dir.name or run_dir}, step {step}", fingerprint(run_dir, step))


class _AsItIs(nnx.Module):
    """Stands in the place of the norm, which is made for the last layer's states."""

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD


def _sums(
    graphdef: nnx.GraphDef[ByteForCausalLM],
    layer: int,
    state: nnx.GraphState,
    input_ids_BT: jax.Array,
    segment_ids_BT: jax.Array,
    weights_BT: jax.Array,
) -> jax.Array:
    decoder = nnx.merge(graphdef, state).model.unstack()
    assert isinstance(decoder.layers, nnx.List)
    decoder.layers = nnx.List(list(decoder.layers)[:layer])
    decoder.norm = _AsItIs()  # type: ignore[assignment]
    middle_BTD = decoder(input_ids_BT, segment_ids=segment_ids_BT).hidden
    embeddings_BTD = decoder.embed_tokens(input_ids_BT, decoder.execution.dtype)
    states_BTD = _at_length_one(embeddings_BTD) + MIDDLE_SHARE * _at_length_one(middle_BTD)
    return jnp.einsum("BTD,BT->BD", states_BTD, weights_BT)


def _at_length_one(x_BTD: jax.Array) -> jax.Array:
    x_BTD = x_BTD.astype(jnp.float32)
    return x_BTD / jnp.maximum(jnp.linalg.norm(x_BTD, axis=-1, keepdims=True), 1e-12)


def _loss(
    graphdef: nnx.GraphDef[ByteForCausalLM],
    state: nnx.GraphState,
    input_ids_1T: jax.Array,
    segment_ids_1T: jax.Array,
    counted_1T: jax.Array,
) -> jax.Array:
    logits_TV = nnx.merge(graphdef, state)(input_ids_1T, segment_ids=segment_ids_1T).logits[0, :-1]
    losses_T = -jnp.take_along_axis(jax.nn.log_softmax(logits_TV), input_ids_1T[0, 1:, None], axis=-1)[:, 0]
    counted_T = counted_1T[0, 1:]
    return jnp.sum(losses_T * counted_T) / jnp.sum(counted_T)

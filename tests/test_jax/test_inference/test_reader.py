"""A run's model as a memory reads with it: rows of any lengths, few programs, and the model's own loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.inference.reader import JaxReader
from stellarbyte_jax.model.causal_lm import ByteForCausalLM
from test_jax.conftest import VOCAB_SIZE
from test_jax.tiny import relative_error, tiny_config, tiny_model


@pytest.fixture(scope="module")
def tokenizer(small_data: DataConfig) -> Tokenizer:
    return Tokenizer.load(small_data.tokenizer)


@pytest.fixture(scope="module")
def model() -> ByteForCausalLM:
    config = tiny_config(vocab_size=VOCAB_SIZE, max_position_embeddings=128, num_hidden_layers=3)
    return tiny_model(config, seed=1)


@pytest.fixture(scope="module")
def reader(model: ByteForCausalLM, tokenizer: Tokenizer) -> JaxReader:
    return JaxReader(model, tokenizer, "run", "weights")


@pytest.mark.long
def test_sums_of_rows(reader: JaxReader, model: ByteForCausalLM) -> None:
    generator = np.random.default_rng(0)
    rows = [generator.integers(3, VOCAB_SIZE, length).tolist() for length in (1, 5, 31, 32, 33, 127, 128)]
    weights = [generator.random(len(row)).tolist() for row in rows]
    together = reader.sums(rows, weights)
    assert (reader.layer, reader.window, together.shape) == (1, 128, (7, reader.size))
    for row, weight, found in zip(rows, weights, together, strict=True):
        assert relative_error(reader.sums([row], [weight])[0], found) < 1e-5
        embeddings = model.model.embed_tokens(jnp.asarray([row]), jnp.float32)[0]
        states = model.model.unstack().layers[0](embeddings[None], *_contexts(model, len(row))).x_BTD[0]
        unit = [x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (embeddings, states)]
        expected = ((unit[0] + unit[1] / 2) * np.asarray(weight)[:, None]).sum(0)
        assert relative_error(found, expected) < 1e-5


def test_few_programs_are_compiled(reader: JaxReader) -> None:
    for length in range(2, 129, 9):
        reader.sums([[5] * length], [[1.0] * length])
        reader.loss([5] * length, 1)
    assert reader._loss._cache_size() == 2
    assert reader._sums._cache_size() <= 4


def test_the_loss_is_the_models(reader: JaxReader, model: ByteForCausalLM) -> None:
    row = np.random.default_rng(1).integers(3, VOCAB_SIZE, 20)
    logits = model(jnp.asarray([row])).logits[0]
    losses = -jax.nn.log_softmax(logits)[jnp.arange(19), row[1:]]
    assert reader.loss(row.tolist(), 7) == pytest.approx(float(losses[6:].mean()), rel=1e-5)


def _contexts(model: ByteForCausalLM, length: int):
    from stellarbyte_jax.model.call_context import CallContext, LayerContext

    tables = model.model.rotary_emb(jnp.arange(length)[None])
    return CallContext(tables, None, None, False), LayerContext(None, None, None)

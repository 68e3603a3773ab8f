"""Head importance against activations and gradients taken by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from stellarbyte_jax.model.pruning import prune_heads
from stellarbyte_jax.training.head_importance import head_importance
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import random_tokens, tiny_config, tiny_params

CONFIG = tiny_config()


def batches():
    for seed in (0, 1):
        ids = random_tokens(CONFIG, 2, 8, seed=seed)
        labels = np.roll(ids, -1, axis=1)
        labels[:, -2:] = -100
        yield {"input_ids": ids, "labels": labels}


def test_a_head_that_is_gone_has_no_importance_and_the_others_have_some() -> None:
    config, params = prune_heads(CONFIG, tiny_params(CONFIG), {1: [2]})
    scores = head_importance(abstract_model(config)[0], params, batches())
    assert scores.shape == (2, 4)
    assert scores[1, 2] == 0
    assert (np.delete(scores.reshape(-1), 6) > 1e-4).all()


def test_importance_is_what_the_loss_would_change_by_to_first_order() -> None:
    """One head's gate, one token, by finite differences of the summed loss."""
    graphdef, params = abstract_model(CONFIG)[0], tiny_params(CONFIG)
    (batch, *_) = batches()
    model = nnx.merge(graphdef, params)

    @jax.jit
    def loss(gates):
        hidden = model.model(batch["input_ids"], head_gates=gates).hidden
        logs = jax.nn.log_softmax(model.logits(hidden))
        labelled = batch["labels"] != -100
        chosen = jnp.take_along_axis(logs, jnp.where(labelled, batch["labels"], 0)[..., None], axis=-1)[..., 0]
        return -(chosen * labelled).sum()

    expected, step = np.zeros((2, 4)), 1e-2
    for layer, head in ((0, 1), (1, 3)):
        for row in range(2):
            for token in range(6):
                gates = jnp.ones((2, 2, 8, 4))
                up = loss(gates.at[layer, row, token, head].add(step))
                down = loss(gates.at[layer, row, token, head].add(-step))
                expected[layer, head] += abs(float(up - down)) / (2 * step) / 12
    scores = head_importance(graphdef, params, [batch])
    for layer, head in ((0, 1), (1, 3)):
        np.testing.assert_allclose(scores[layer, head], expected[layer, head], rtol=5e-3)

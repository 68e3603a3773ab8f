"""With slots for whole rows both ways of reading give one loss; and what is printed is what was measured."""

import functools

import jax
import numpy as np

from stellarbyte.kv_cache.registry import policy
from stellarbyte.kv_cache.settings import KVBudget, KVPruning
from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.training.pruned_evaluation import PrunedEvaluation, second_halves
from stellarbyte_jax.training.state import abstract_model
from test_jax.tiny import random_tokens, segments, tiny_config, tiny_params


def test_slots_for_whole_rows_lose_nothing() -> None:
    """A row of one document and a row of three, and the labels of second halves alone."""
    config = tiny_config(num_hidden_layers=1)
    positions, segment_ids = (np.concatenate(both) for both in zip(segments(20), segments(6, 9, 5), strict=True))
    labels = random_tokens(config, 2, 20, seed=1)
    labels[:, 14] = IGNORED_LABEL
    batch = {"input_ids": random_tokens(config, 2, 20), "labels": labels}
    batch |= {"position_ids": positions, "segment_ids": segment_ids}
    measure = jax.jit(
        functools.partial(
            second_halves, abstract_model(config)[0], (20,), KVPruning(KVBudget(slots=20), policy("heavy"))
        )
    )
    full, pruned = measure(tiny_params(config), batch)
    assert int(full.tokens) == int(pruned.tokens) == 2 * 9
    np.testing.assert_allclose(pruned.loss, full.loss, rtol=1e-5)
    assert int(pruned.correct) == int(full.correct)


def test_what_is_printed() -> None:
    full, pruned = {"loss": 1.0, "perplexity": 2.0}, {"loss": 1.5, "perplexity": 2.5}
    text = PrunedEvaluation(16, 24, 60.0, full, pruned).text()
    assert "second halves of validation rows of 24 tokens, 60 labelled tokens" in text
    assert "16 slots" in text
    assert "changes by +25.00%" in text

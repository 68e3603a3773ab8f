"""Scores of labels, whatever the pieces that logits are made in."""

import jax
import numpy as np
import pytest

from stellarbyte_jax.training import token_scores as module
from stellarbyte_jax.training.token_scores import token_scores
from test_jax.tiny import random_tokens, tiny_config, tiny_model
from tiers import short_tier


@pytest.mark.parametrize(
    ("positions", "tied"), short_tier([(10, True), (1, False), (2, True), (12, False), (26, True), (99, False)], 0)
)
def test_they_are_those_of_the_logits(positions: int, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 13 positions in two rows: pieces of one, of five with a shorter last one, of six, and all at once."""
    monkeypatch.setattr(module, "_POSITIONS", positions)
    config = tiny_config(tie_word_embeddings=tied)
    model, ids_BT = tiny_model(config), random_tokens(config, 2, 13)
    labels_BT = np.where(np.arange(13) % 4 == 3, -100, random_tokens(config, 2, 13, seed=1))
    found = token_scores(model, model.model(ids_BT).hidden, labels_BT)
    expected_BTV = np.asarray(jax.nn.log_softmax(model(ids_BT).logits))
    counts_BT = labels_BT >= 0
    log_p_BT, top_BT, hit_BT = map(np.asarray, found)
    labels_BT1 = np.maximum(labels_BT, 0)[..., None]
    np.testing.assert_allclose(
        log_p_BT[counts_BT], np.take_along_axis(expected_BTV, labels_BT1, axis=-1)[..., 0][counts_BT], rtol=1e-5
    )
    np.testing.assert_allclose(top_BT, expected_BTV.max(axis=-1), rtol=1e-5)
    assert (hit_BT == (expected_BTV.argmax(axis=-1) == labels_BT))[counts_BT].all()

"""A run and its export give the same vectors to a memory, and are as much surprised."""

from pathlib import Path

import numpy as np
import pytest

from stellarbyte.memory.embedders import ModelEmbedder, open_embedder, open_reader
from stellarbyte.memory.judges import ModelJudge

TEXTS = ["the star", "a byte that was a star " * 9, "", "é。", "def star(byte)", *["star " * n for n in range(1, 15)]]


def test_both_wings_read_alike(run_dir: Path, exported: Path) -> None:
    ours, theirs = open_reader(run_dir), open_reader(exported)
    assert (ours.layer, ours.size, ours.window) == (theirs.layer, theirs.size, theirs.window)
    assert [ours.tokens(text) for text in TEXTS] == [theirs.tokens(text) for text in TEXTS]
    expected = ModelEmbedder(theirs).embed(TEXTS)
    np.testing.assert_allclose(
        ModelEmbedder(ours).embed(TEXTS), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max()
    )
    for text, given in (("the star", ""), ("the star", "a byte"), ("star " * 99, "byte " * 99)):
        assert abs(ModelJudge(ours).loss(text, given) / ModelJudge(theirs).loss(text, given) - 1) < 1e-5


@pytest.mark.long
def test_a_run_is_its_own_embedder(run_dir: Path) -> None:
    """One text at a time or many: the same vectors. And the same hash each time."""
    embedder = open_embedder(run_dir)
    together = embedder.embed(TEXTS)
    alone = np.concatenate([embedder.embed([text], queries=True) for text in TEXTS[:6]])
    np.testing.assert_allclose(alone, together[:6], atol=1e-5)
    assert embedder.name == "run, step 0" and embedder.hash == open_embedder(run_dir).hash
    assert embedder.embed([]).shape == (0, embedder.size)

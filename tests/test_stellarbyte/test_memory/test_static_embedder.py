"""A folder of model2vec gives the vectors that model2vec gives."""

import json
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte.memory.embedders import open_embedder

model2vec = pytest.importorskip("model2vec")
tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["a star", "the byte and the star", "", "nothing known"]


def static_folder(folder: Path, seed: int = 0) -> Path:
    words = ["[UNK]", "a", "the", "star", "byte", "and"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    vectors = np.random.default_rng(seed).normal(size=(len(words), 8)).astype(np.float32)
    model2vec.StaticModel(vectors, tokenizer, config={"model_type": "model2vec", "normalize": True}).save_pretrained(
        folder
    )
    return folder


def test_vectors_and_hash(tmp_path: Path) -> None:
    folder = static_folder(tmp_path / "static")
    embedder = open_embedder(folder)
    assert (embedder.name, embedder.size) == ("static", 8)
    expected = model2vec.StaticModel.from_pretrained(folder).encode(TEXTS)
    np.testing.assert_array_equal(embedder.embed(TEXTS), expected)
    assert embedder.embed(TEXTS).dtype == np.float32 and embedder.embed([]).shape == (0, 8)
    assert open_embedder(folder).hash == embedder.hash != open_embedder(static_folder(tmp_path / "other", 1)).hash


def test_what_is_refused(tmp_path: Path) -> None:
    folder = static_folder(tmp_path / "static")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-4])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        open_embedder(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"static holds no model\.safetensors: save it again with model2vec"):
        open_embedder(folder)
    (folder / "model.safetensors").write_bytes(weights)
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**content, "model": {"type": "WordLevel"}}))
    with pytest.raises(UserError, match="holds no model2vec model that can be loaded"):
        open_embedder(folder)

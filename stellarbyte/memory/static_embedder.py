"""A model2vec folder as an embedder: a vector for each token, and their mean."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.files import sha256_of, sha256_of_json
from stellarbyte.reading import read_json_object
from stellarbyte.safetensors_header import read_header
from stellarbyte.tokenizer_file import check_tokenizer, works

# What decides the vectors, and all that is read.
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class StaticEmbedder:
    """The embedder in a folder that model2vec has saved.

    Raises:
        UserError: a file is missing or damaged.
        ModuleNotFoundError: model2vec is not installed.
    """

    whitened = False

    def __init__(self, folder: Path) -> None:
        from model2vec import StaticModel

        for name in _FILES:
            if not (folder / name).is_file():
                raise UserError(f"{folder} holds no {name}: save it again with model2vec")
        read_header(folder / "model.safetensors")
        check_tokenizer(read_json_object(folder / "tokenizer.json"), str(folder / "tokenizer.json"))
        try:
            self._model = StaticModel.from_pretrained(folder)
        except Exception as error:  # tokenizers and safetensors raise the bare class
            why = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(f"{folder} holds no model2vec model that can be loaded: {why}") from error
        self.name, self.size = folder.resolve().name, int(self._model.dim)
        self.hash = sha256_of_json({"model2vec": {name: sha256_of(folder / name) for name in _FILES}})

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:  # noqa: ARG002 - both read alike
        """See Embedder."""
        if not texts:
            return np.zeros((0, self.size), np.float32)
        with works(self.name):
            vectors = self._model.encode(list(texts), show_progress_bar=False, use_multiprocessing=False)
        return np.asarray(vectors, np.float32)

"""What turns texts into vectors: a language model's own middle layer, or a folder that was made for it."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.info import folder_kind
from stellarbyte.memory.protocols import Embedder
from stellarbyte.memory.reader import Reader
from stellarbyte.places import Place, local
from stellarbyte.reading import read_json

# Rows that are read at once.
_BATCH = 16


class ModelEmbedder:
    """The mean of a language model's states over a text's tokens: it needs nothing but the model.

    States are embeddings and middle states, as the first and the last layer's are averaged by Su et al. (2021,
    arXiv:2103.15316). A token counts by the logarithm of its number: vocabularies are made from the frequent to the
    rare, so a low number says little, which is how Model2Vec weighs tokens. The token before the text is read and not
    counted. A long text is read in windows. A text without tokens has the vector 0.
    """

    whitened = True

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.name, self.hash, self.size = reader.name, reader.hash, reader.size

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:  # noqa: ARG002 - both read alike
        """See Embedder."""
        begin = self._reader.begin
        room = self._reader.window - len(begin)
        windows: list[tuple[int, list[int]]] = []
        for number, text in enumerate(texts):
            ids = self._reader.tokens(text)
            windows += [(number, ids[start : start + room]) for start in range(0, len(ids), room)]
        windows.sort(key=lambda window: len(window[1]))  # rows of a batch have about one length
        sums = np.zeros((len(texts), self.size), np.float32)
        totals = np.zeros(len(texts), np.float32)
        for start in range(0, len(windows), _BATCH):
            batch = windows[start : start + _BATCH]
            weights = [[0.0] * len(begin) + np.log(np.array(ids) + 2.0).tolist() for _, ids in batch]
            rows = self._reader.sums([begin + ids for _, ids in batch], weights)
            for (number, _), row, given in zip(batch, rows, weights, strict=True):
                sums[number] += row
                totals[number] += sum(given)
        return sums / np.maximum(totals, 1e-9)[:, None]


def open_embedder(folder: Place, device: str | None = None, dtype: str = "auto") -> Embedder:
    """The embedder in a folder of this machine; nothing is downloaded.

    Args:
        folder: a run, a causal language model, or what model2vec or sentence-transformers has saved.
        device: where PyTorch computes; CUDA by default, if there is one.
        dtype: of a model's computation.

    Raises:
        UserError: the folder is none of these, or is damaged.
        ModuleNotFoundError: its library is not installed.
    """
    if isinstance(folder, Path) and _is_model2vec(folder):
        from stellarbyte.memory.static_embedder import StaticEmbedder

        return StaticEmbedder(folder)
    if isinstance(folder, Path) and (folder / "modules.json").is_file():
        found: Embedder = import_module("stellarbyte_torch.memory.sentence_embedder").SentenceEmbedder(folder, device)
        return found
    return ModelEmbedder(open_reader(folder, device, dtype))


def hear_libraries(folder: Place) -> None:
    """For commands, before an embedder or a reader is opened: what PyTorch's libraries log becomes lines of ours."""
    if isinstance(folder, Path) and ((folder / "config.json").is_file() or (folder / "modules.json").is_file()):
        import_module("stellarbyte_torch.library_words").hear_libraries("stellarbyte")


def open_reader(folder: Place, device: str | None = None, dtype: str = "auto") -> Reader:
    """The language model in a folder as a reader, of a run or of a Hugging Face folder. Raises UserError: it is none.

    device, dtype: as for `open_embedder`.
    """
    kind = folder_kind(folder)
    if kind not in ("run", "model"):
        raise UserError(
            f"{folder} is {kind if kind == 'shards' else f'a {kind}'}, and what turns texts into vectors is a run, a "
            "language model's folder, or a folder of sentence-transformers or model2vec: name one of these"
        )
    if kind == "model":
        local(folder, "EMBEDDER", "Hugging Face folders are read from this machine: copy it here")
    module = "stellarbyte_jax.text_commands" if kind == "run" else "stellarbyte_torch.memory.reader"
    reader: Reader = import_module(module).open_reader(folder, device=device, dtype=dtype)
    return reader


def _is_model2vec(folder: Path) -> bool:
    if not (folder / "config.json").is_file():
        return False
    config: Any = read_json(folder / "config.json")
    return isinstance(config, dict) and config.get("model_type") == "model2vec"

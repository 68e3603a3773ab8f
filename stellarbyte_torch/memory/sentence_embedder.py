"""A sentence-transformers folder as an embedder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError, shown
from stellarbyte.files import check_plain_name, sha256_of, sha256_of_json
from stellarbyte.reading import read_json
from stellarbyte.safetensors_header import read_header
from stellarbyte_torch.model_folder import device_named, first_line

_WEIGHTS = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle")


class SentenceEmbedder:
    """The embedder in a folder that sentence-transformers has saved, with its own pooling and prompts.

    Raises:
        UserError: the folder is damaged, wants code of its own, or has weights only as pickles; or the device is not
            there.
        ModuleNotFoundError: sentence-transformers is not installed.
    """

    whitened = False

    def __init__(self, folder: Path, device: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        _check_modules(folder)
        target = device_named(device)
        try:
            self._model = SentenceTransformer(
                str(folder), device=str(target), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # it documents no list
            raise UserError(
                f"{folder} holds no sentence-transformers model that can be loaded: {first_line(error)}"
            ) from error
        size = self._model.get_embedding_dimension()
        assert size is not None
        self.name, self.size = folder.resolve().name, int(size)
        files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt", ".model"))
        self.hash = sha256_of_json({str(path.relative_to(folder)): sha256_of(path) for path in files})

    def embed(self, texts: Sequence[str], *, queries: bool = False) -> np.ndarray:
        """See Embedder; queries and documents get the prompts that the folder has for them."""
        if not texts:
            return np.zeros((0, self.size), np.float32)
        encode = self._model.encode_query if queries else self._model.encode_document
        return np.asarray(encode(list(texts), show_progress_bar=False, convert_to_numpy=True), np.float32)


def _check_modules(folder: Path) -> None:
    """Refuses modules that are not the library's own, or whose weights are pickles."""
    where = folder / "modules.json"
    modules = read_json(where)
    if not isinstance(modules, list) or not modules:
        raise UserError(f"{where} holds {shown(modules)}, expected the list of modules")
    for module in modules:
        kind, path = (module.get(key) if isinstance(module, dict) else None for key in ("type", "path"))
        if not isinstance(kind, str) or not kind.startswith("sentence_transformers."):
            raise UserError(f"{where} has a module of type {shown(kind)}, which is none of sentence-transformers' own")
        if not isinstance(path, str):
            raise UserError(f"{where} has a module in {shown(path)}, expected a folder's name")
        part = folder / check_plain_name(path, str(where)) if path not in ("", ".") else folder
        if (part / _WEIGHTS).is_file():
            read_header(part / _WEIGHTS)
        elif pickles := sorted(found.name for pattern in _PICKLES for found in part.glob(pattern)):
            raise UserError(f"{part} has its weights in {pickles[0]}, a pickle, which may run code: save safetensors")

"""Opens the token shards of a split, memory-mapped."""

from functools import lru_cache
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.shard_writer import HEADER_BYTES, documents_path, shard_path

_OPEN_SHARDS = 256


class TokenShards:
    """One split of a finished folder: a stream of tokens and the places where its documents start, memory-mapped.

    `starts` is int64 [documents + 1]: document i is tokens starts[i] to starts[i + 1].
    """

    def __init__(self, folder: Path, split: str, manifest: Manifest) -> None:
        counts = manifest.splits[split]
        self.folder, self.split, self.manifest = folder, split, manifest
        self.tokens, self.documents, self.bytes = counts.tokens, counts.documents, counts.bytes
        self.dtype = manifest.recipe.item_dtype
        self._tokens_per_shard = manifest.recipe.tokens_per_shard
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)  # each open one takes a file descriptor
        self.starts = _map(documents_path(folder, split), np.dtype(np.int64), self.documents + 1)
        for index in range(-(-self.tokens // self._tokens_per_shard)):
            _check(shard_path(folder, split, index), self.dtype, self._length(index))

    @classmethod
    def open(cls, folder: str | Path, split: str) -> "TokenShards":
        """Open the "train" or "validation" split of a folder that `prepare` finished.

        Raises:
            UserError: the folder is unfinished, or a file of it is missing or damaged.
        """
        return cls(Path(folder), split, Manifest.load(Path(folder)))

    def _length(self, index: int) -> int:
        return min(self._tokens_per_shard, self.tokens - index * self._tokens_per_shard)

    def _open_shard(self, index: int) -> np.ndarray:
        return _map(shard_path(self.folder, self.split, index), self.dtype, self._length(index))

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start to stop of the split's stream, which may lie in several shards."""
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        parts = []
        while start < stop:
            index, offset = divmod(start, self._tokens_per_shard)
            part = self._shard(index)[offset : offset + stop - start]
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)


def _map(path: Path, dtype: np.dtype, length: int) -> np.ndarray:
    # Not np.load: it parses the header as Python, which Python 3.11 cannot do in two threads at once.
    _check(path, dtype, length)
    return np.memmap(path, dtype, "r", HEADER_BYTES, (length,))


def _check(path: Path, dtype: np.dtype, length: int) -> None:
    expected = HEADER_BYTES + length * dtype.itemsize
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        found = "is missing" if size is None else f"has {size} bytes where the manifest says {expected}"
        raise UserError(f"{path} {found}: delete its folder and prepare it again")

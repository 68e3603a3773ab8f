"""Reads the token shards of a split, and refuses everything that is not as it was written."""

from functools import cached_property, lru_cache

import numpy as np

from stellarbyte.places import BucketPath, Place
from stellarbyte.reading import expanded
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.array_file import BLOCK_BYTES, ArrayReader, block_count, check_size, damaged
from stellarbyte_jax.data.block_cache import BlockCache
from stellarbyte_jax.data.manifest import MANIFEST_NAME, Manifest
from stellarbyte_jax.data.shard_writer import DOCUMENT_DTYPE, documents_path, shard_path

_OPEN_SHARDS = 256
_STARTS_A_BLOCK = BLOCK_BYTES // DOCUMENT_DTYPE.itemsize


class TokenShards:
    """The "train" or "validation" split of a finished folder: a stream of tokens and where its documents start.

    folder: on this machine, or in a bucket: then `cache` keeps what was read of it (see `shard_cache`).

    Raises:
        UserError: from any method, if a file is missing or damaged, or was cut short after it was opened.
    """

    def __init__(self, folder: Place, split: str, manifest: Manifest, cache: BlockCache | None = None) -> None:
        counts = manifest.splits[split]
        self.folder, self.split, self.manifest = folder, split, manifest
        self.tokens, self.documents, self.bytes = counts.tokens, counts.documents, counts.bytes
        self.dtype = manifest.recipe.item_dtype
        self._cache = cache
        self._tokens_per_shard = manifest.recipe.tokens_per_shard
        self._checked: dict[str, np.ndarray] = {}  # kept when a file is closed, so that no block is checked twice
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)  # each open shard takes a file descriptor
        sizes = folder.sizes() if isinstance(folder, BucketPath) else None
        for index in range(-(-self.tokens // self._tokens_per_shard)):
            check_size(shard_path(folder, split, index), self.dtype, self._length(index), sizes)
        check_size(documents_path(folder, split), DOCUMENT_DTYPE, self.documents + 1, sizes)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `start` to `stop` of the split's stream, without the latter; they may lie in several shards."""
        assert 0 <= start <= stop <= self.tokens, (start, stop, self.tokens)
        parts = []
        while start < stop:
            index, offset = divmod(start, self._tokens_per_shard)
            part = self._shard(index).read(offset, min(offset + stop - start, self._length(index)))
            parts.append(part)
            start += len(part)
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    @cached_property
    def starts(self) -> np.ndarray:
        """The positions where documents start and, last, the split's end, all in memory: int64 [documents + 1].

        Document i is tokens starts[i] to starts[i + 1].
        """
        assert len(self._first_starts)  # making it checks that all starts rise
        return self._documents.read(0, self.documents + 1)

    def starts_within(self, start: int, stop: int) -> np.ndarray:
        """The positions after `start`, up to and including `stop`, where a document starts or the split ends."""
        blocks = self._first_starts
        first, last = np.searchsorted(blocks, np.array([start, stop], np.int64), side="right")
        starts = self._documents.read((first - 1) * _STARTS_A_BLOCK, min(last * _STARTS_A_BLOCK, self.documents + 1))
        return starts[slice(*np.searchsorted(starts, np.array([start, stop], np.int64), side="right"))]

    @cached_property
    def _documents(self) -> ArrayReader:
        return self._open(documents_path(self.folder, self.split), DOCUMENT_DTYPE, self.documents + 1)

    @cached_property
    def _first_starts(self) -> np.ndarray:
        """The first start in each block of starts, after a check that all rise. A search reads one block or two."""
        firsts, before = [], -1
        for index in range(0, self.documents + 1, _STARTS_A_BLOCK):
            starts = self._documents.read(index, min(index + _STARTS_A_BLOCK, self.documents + 1))
            if starts[0] <= before or (np.diff(starts) <= 0).any():
                raise damaged(
                    documents_path(self.folder, self.split), "is damaged: its documents do not follow each other"
                )
            firsts.append(starts[0])
            before = starts[-1]
        if firsts[0] != 0 or before != self.tokens:
            raise damaged(
                documents_path(self.folder, self.split), "is damaged: its documents are not the tokens of the split"
            )
        return np.array(firsts, np.int64)

    def _length(self, index: int) -> int:
        return min(self._tokens_per_shard, self.tokens - index * self._tokens_per_shard)

    def _open_shard(self, index: int) -> ArrayReader:
        return self._open(shard_path(self.folder, self.split, index), self.dtype, self._length(index))

    def _open(self, path: Place, dtype: np.dtype, length: int) -> ArrayReader:
        if self.manifest.checksums is None:
            if isinstance(path, BucketPath):
                raise damaged(path, "has no checksums, without which nothing is read from a bucket")
            return ArrayReader(path, dtype, length, None, None)
        blocks = block_count(length * dtype.itemsize)
        try:
            sums = np.frombuffer(bytes.fromhex(self.manifest.checksums[path.name]), ">u4")
        except (KeyError, ValueError):
            sums = np.empty(0, ">u4")
        if len(sums) != blocks:
            raise damaged(self.folder / MANIFEST_NAME, f"is damaged: it has not the checksums of {path.name}")
        checked = self._checked.setdefault(path.name, np.zeros(blocks, bool))
        if not isinstance(path, BucketPath):
            return ArrayReader(path, dtype, length, sums, checked)
        assert self._cache is not None, path
        source = self._cache.file(path, length * dtype.itemsize, sums.tobytes())
        return ArrayReader(path, dtype, length, sums, checked, source)


def shard_cache(data: DataConfig, manifest: Manifest) -> BlockCache:
    """The cache for token shards in a bucket, as the config says where and how large it is."""
    tokens = sum(counts.tokens for counts in manifest.splits.values())
    documents = sum(counts.documents + 1 for counts in manifest.splits.values())
    data_bytes = tokens * manifest.recipe.item_dtype.itemsize + documents * DOCUMENT_DTYPE.itemsize
    return BlockCache(expanded(data.cache_dir), round(data.cache_gb * 1e9), data_bytes)

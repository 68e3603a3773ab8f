"""Appends tokens to the shards of one split, in files that can be cut back to an earlier length."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stellarbyte.places import BucketPath, Place
from stellarbyte_jax.data.array_file import HEADER_BYTES, ArrayWriter, block_count

DOCUMENT_DTYPE, SUM_DTYPE = np.dtype(np.int64), np.dtype(np.uint32)

_COPY_TOKENS = 1 << 20

Folder = TypeVar("Folder", Path, BucketPath, Place)


def shard_path(folder: Folder, split: str, index: int) -> Folder:
    """The file of a shard's tokens: Recipe.item_dtype [at most tokens_per_shard]."""
    return folder / f"{split}-{index:05d}.npy"


def documents_path(folder: Folder, split: str) -> Folder:
    """The file of the positions where documents start and, last, of the split's end: int64 [documents + 1]."""
    return folder / f"{split}-documents.npy"


def sums_path(folder: Path, split: str) -> Path:
    """The file of the checksums of all full shards, uint32; it is there until the manifest holds them."""
    return folder / f"{split}-checksums.npy"


@dataclass
class SplitState:
    """How much of a split is written. With the last document's start and bytes, that document can be removed again.

    source_tokens: the tokens of each source, as far as sources have been read; they follow each other in the split.
    """

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    last_start: int = 0
    last_bytes: int = 0
    source_tokens: tuple[int, ...] = ()

    def add_to_sources(self, sources: np.ndarray, lengths: np.ndarray) -> None:
        """Counts pieces of these sources with these numbers of tokens."""
        known = np.array(self.source_tokens, np.int64)
        counts = np.zeros(max(len(known), sources.max(initial=-1) + 1), np.int64)
        counts[: len(known)] = known
        np.add.at(counts, sources, lengths)
        self.source_tokens = tuple(counts.tolist())


class ShardWriter:
    """Writes one split. Each shard but the last holds exactly tokens_per_shard tokens; documents run across shards.

    The checksums of a shard are written when it is full. After an interruption, the next writer computes those of the
    unfinished shard from its file.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype, tokens_per_shard: int, state: SplitState) -> None:
        self.state = state
        self._folder, self._split = folder, split
        self._dtype, self._tokens_per_shard = dtype, tokens_per_shard
        self._shard: ArrayWriter | None = None
        self._open_at_end()

    @staticmethod
    def is_intact(folder: Path, split: str, dtype: np.dtype, tokens_per_shard: int, state: SplitState) -> bool:
        """Whether the files hold everything that `state` counts; a power failure may have lost some of it."""
        lengths = {documents_path(folder, split): state.documents * DOCUMENT_DTYPE.itemsize}
        for index, start in enumerate(range(0, state.tokens, tokens_per_shard)):
            tokens = min(tokens_per_shard, state.tokens - start)
            lengths[shard_path(folder, split, index)] = tokens * dtype.itemsize
        sums = state.tokens // tokens_per_shard * block_count(tokens_per_shard * dtype.itemsize)
        lengths[sums_path(folder, split)] = sums * SUM_DTYPE.itemsize
        return all(path.is_file() and path.stat().st_size >= HEADER_BYTES + size for path, size in lengths.items())

    def append(self, tokens: np.ndarray, starts: np.ndarray, begins: np.ndarray, text_bytes: np.ndarray) -> None:
        """Appends pieces of documents: each has a start in `tokens`, may begin a document, and has bytes of text."""
        state = self.state
        first_tokens = starts[begins].astype(DOCUMENT_DTYPE) + state.tokens
        self._documents.write(first_tokens)
        self._append_tokens(tokens)
        state.documents += len(first_tokens)
        state.bytes += int(text_bytes.sum())
        if len(first_tokens):
            last = int(np.flatnonzero(begins)[-1])
            state.last_start, state.last_bytes = int(first_tokens[-1]), int(text_bytes[last:].sum())
        else:
            state.last_bytes += int(text_bytes.sum())

    def _append_tokens(self, tokens: np.ndarray) -> None:
        tokens = tokens.astype(self._dtype, copy=False)
        while len(tokens):
            index, filled = divmod(self.state.tokens, self._tokens_per_shard)
            if self._shard is None:
                self._shard = self._open_shard(index, filled)
            now = tokens[: self._tokens_per_shard - filled]
            self._shard.write(now)
            self.state.tokens += len(now)
            tokens = tokens[len(now) :]
            if filled + len(now) == self._tokens_per_shard:
                self._sums.write(self._shard.finish(self._tokens_per_shard))
                self._shard = None

    def flush(self) -> None:
        """Writes everything that was appended to the disk."""
        for file in (self._shard, self._documents, self._sums):
            if file is not None:
                file.flush()

    def last_document(self) -> Iterator[np.ndarray]:
        """The tokens of the last document, in blocks."""
        self.flush()
        position = self.state.last_start
        while position < self.state.tokens:
            index, offset = divmod(position, self._tokens_per_shard)
            count = min(_COPY_TOKENS, self._tokens_per_shard - offset, self.state.tokens - position)
            with shard_path(self._folder, self._split, index).open("rb") as shard:
                shard.seek(HEADER_BYTES + offset * self._dtype.itemsize)
                yield np.frombuffer(shard.read(count * self._dtype.itemsize), self._dtype)
            position += count

    def cut_back(self) -> None:
        """Removes from the files everything that `state` does not count."""
        self.close()
        self._open_at_end()

    def _open_at_end(self) -> None:
        self._shard = None
        self._documents = ArrayWriter(
            documents_path(self._folder, self._split), DOCUMENT_DTYPE, 0, self.state.documents
        )
        full = self.state.tokens // self._tokens_per_shard
        sums = full * block_count(self._tokens_per_shard * self._dtype.itemsize)
        self._sums = ArrayWriter(sums_path(self._folder, self._split), SUM_DTYPE, 0, sums)
        index = -(-self.state.tokens // self._tokens_per_shard)
        while (beyond := shard_path(self._folder, self._split, index)).exists():
            beyond.unlink()
            index += 1

    def _open_shard(self, index: int, filled: int) -> ArrayWriter:
        path = shard_path(self._folder, self._split, index)
        return ArrayWriter(path, self._dtype, self._tokens_per_shard, filled)

    def finish(self) -> dict[str, np.ndarray]:
        """Writes every file's final header, and the file to the disk; returns file name -> checksums."""
        full, filled = divmod(self.state.tokens, self._tokens_per_shard)
        self._sums.flush()
        path = sums_path(self._folder, self._split)
        blocks: Any = np.fromfile(path, SUM_DTYPE, offset=HEADER_BYTES).reshape(full, -1) if full else []
        sums = {shard_path(self._folder, self._split, index).name: blocks[index] for index in range(full)}
        if filled:
            last = self._shard or self._open_shard(full, filled)
            sums[shard_path(self._folder, self._split, full).name] = last.finish(filled)
            self._shard = None
        self._documents.write(np.array([self.state.tokens], DOCUMENT_DTYPE))
        documents = self._documents.finish(self.state.documents + 1)
        return sums | {documents_path(self._folder, self._split).name: documents}

    def close(self) -> None:
        """Closes the files, finished or not."""
        for file in (self._shard, self._documents, self._sums):
            if file is not None:
                file.close()

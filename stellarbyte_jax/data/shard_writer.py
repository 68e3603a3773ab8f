"""Appends tokens to the shards of one split, in files that can be cut back to an earlier length."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

# numpy leaves room in the header for the first axis to grow, so that every array of one axis has a header this long.
HEADER_BYTES = 128

_COPY_TOKENS = 1 << 20


def shard_path(folder: Path, split: str, index: int) -> Path:
    """File of a shard's tokens: Recipe.item_dtype [at most tokens_per_shard]."""
    return folder / f"{split}-{index:05d}.npy"


def documents_path(folder: Path, split: str) -> Path:
    """File of the position at which each document starts, and, last, of the split's end: int64 [documents + 1]."""
    return folder / f"{split}-documents.npy"


@dataclass
class SplitState:
    """How much of a split is written; the last document's start and bytes are kept so that it can be taken back."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    last_start: int = 0
    last_bytes: int = 0


class ShardWriter:
    """Writes one split: each shard holds exactly tokens_per_shard tokens but the last; documents run across shards."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype, tokens_per_shard: int, state: SplitState) -> None:
        self.state = state
        self._folder, self._split = folder, split
        self._dtype, self._tokens_per_shard = dtype, tokens_per_shard
        self._shard: BinaryIO | None = None
        self._documents = _open_at(documents_path(folder, split), np.dtype(np.int64), 0, state.documents)
        self._remove_shards_after_end()

    @staticmethod
    def is_intact(folder: Path, split: str, dtype: np.dtype, tokens_per_shard: int, state: SplitState) -> bool:
        """Whether the files hold all that `state` says, which a power failure may have undone."""
        lengths = {documents_path(folder, split): state.documents * 8}
        for index, start in enumerate(range(0, state.tokens, tokens_per_shard)):
            tokens = min(tokens_per_shard, state.tokens - start)
            lengths[shard_path(folder, split, index)] = tokens * dtype.itemsize
        return all(path.is_file() and path.stat().st_size >= HEADER_BYTES + size for path, size in lengths.items())

    def append(self, tokens: np.ndarray, starts: np.ndarray, begins: np.ndarray, text_bytes: np.ndarray) -> None:
        """Append pieces of documents: where in `tokens` each starts, whether it begins a document, its text's bytes."""
        state = self.state
        first_tokens = starts[begins].astype(np.int64) + state.tokens
        self._documents.write(first_tokens.tobytes())
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
                self._shard = _open_at(
                    shard_path(self._folder, self._split, index), self._dtype, self._tokens_per_shard, filled
                )
            now = tokens[: self._tokens_per_shard - filled]
            self._shard.write(now.tobytes())
            self.state.tokens += len(now)
            tokens = tokens[len(now) :]
            if filled + len(now) == self._tokens_per_shard:
                _close(self._shard)
                self._shard = None

    def flush(self) -> None:
        """Bring what was appended to the disk."""
        for file in (self._shard, self._documents):
            if file is not None:
                file.flush()
                os.fsync(file.fileno())

    def last_document(self) -> Iterator[np.ndarray]:
        """Tokens of the last document, in blocks."""
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
        """Drop from the files whatever lies beyond `state`."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        self._documents.close()
        self._documents = _open_at(
            documents_path(self._folder, self._split), np.dtype(np.int64), 0, self.state.documents
        )
        self._remove_shards_after_end()

    def _remove_shards_after_end(self) -> None:
        index = -(-self.state.tokens // self._tokens_per_shard)
        while (beyond := shard_path(self._folder, self._split, index)).exists():
            beyond.unlink()
            index += 1

    def finish(self) -> None:
        """Give every file its final header and bring it to the disk."""
        self._documents.write(np.int64(self.state.tokens).tobytes())
        _write_header(self._documents, np.dtype(np.int64), self.state.documents + 1)
        _close(self._documents)
        index, filled = divmod(self.state.tokens, self._tokens_per_shard)
        if filled:
            shard = self._shard or _open_at(shard_path(self._folder, self._split, index), self._dtype, 0, filled)
            _write_header(shard, self._dtype, filled)
            _close(shard)
        self._shard = None

    def close(self) -> None:
        """Let go of the files, finished or not."""
        self._documents.close()
        if self._shard is not None:
            self._shard.close()


def _open_at(path: Path, dtype: np.dtype, header_length: int, length: int) -> BinaryIO:
    """Open an array file to append after its first `length` items, and drop what lies beyond them."""
    file = path.open("r+b" if length else "w+b")
    if length == 0:
        _write_header(file, dtype, header_length)
    file.truncate(HEADER_BYTES + length * dtype.itemsize)
    file.seek(0, os.SEEK_END)
    return file


def _write_header(file: BinaryIO, dtype: np.dtype, length: int) -> None:
    file.seek(0)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)
    assert file.tell() == HEADER_BYTES, file.tell()


def _close(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()

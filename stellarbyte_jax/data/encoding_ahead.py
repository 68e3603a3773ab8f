"""Streams the sources' documents as tokens: one thread reads, the tokenizer's threads encode, the caller's writes."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from stellarbyte.records.bad_records import BadRecords
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.documents import PIECE_CHARS, Document, RecordText, read_documents
from stellarbyte_jax.data.manifest import SampleCounts
from stellarbyte_jax.data.passages import PassageSplit, text_hash
from stellarbyte_jax.data.tokenizer import Tokenizer

# A batch has enough text for every core, but is small, because encoding takes some 50 bytes of memory a character.
BATCH_CHARS = 1 << 20
_ENCODERS = 2  # while one takes the ids over from Rust, the other keeps the cores busy
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Position:
    """How far the sources are read: files done, then pieces of documents (of chat: records) and bytes of the next file.

    The other fields are needed to read on: the split of a document that may be unfinished, and the bad records, empty
    records and samples so far.

    parts: the number of parts that are merged; then `file` counts parts, and `pieces` tokens. 0 where sources are read.
    """

    file: int = 0
    pieces: int = 0
    bytes_read: int = 0
    in_validation: bool = False
    bad_record_count: int = 0
    first_bad_records: tuple[str, ...] = ()
    samples: SampleCounts = field(default_factory=SampleCounts)
    empty_records: int = 0
    parts: int = 0


class WorkFile(NamedTuple):
    """A file to read, with the number of its source; `span` are the bytes in which its records begin, None for all."""

    source: int
    path: Path
    span: range | None = None


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of some pieces of documents, with bos and eos.

    The other arrays say of each piece where in `tokens` it starts, whether it begins a document, whether it is for
    validation, how many bytes its text has, and the number of its source. `position` is the place to go on from after
    this batch.
    """

    tokens: np.ndarray
    starts: np.ndarray
    begins: np.ndarray
    in_validation: np.ndarray
    text_bytes: np.ndarray
    sources: np.ndarray
    position: Position


@dataclass
class _TextBatch:
    position: Position
    texts: list[str] = field(default_factory=list)
    begins: list[bool] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    in_validation: list[bool] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    chars: int = 0

    def add(self, document: Document, in_validation: bool, text_bytes: int, source: int) -> None:
        self.texts.append(document.text)
        self.begins.append(document.begins)
        self.ends.append(document.ends)
        self.in_validation.append(in_validation)
        self.text_bytes.append(text_bytes)
        self.sources.append(source)
        self.chars += len(document.text)


def tokenized(
    data: DataConfig,
    tokenizer: Tokenizer,
    files: Sequence[WorkFile],
    position: Position,
    passages: PassageSplit | None = None,
) -> Generator[TokenBatch, None, None]:
    """Token batches of everything after `position`; the last one ends at the end of the sources.

    With `passages`, each part of a document that lies in one
    split becomes a document of its own. Memory is that of a few batches, whatever the size of the sources.
    """
    return encoded_ahead(_text_batches(data, files, position, passages), partial(_encode, tokenizer))


_Batch = TypeVar("_Batch")
_Item = TypeVar("_Item")


def encoded_ahead(
    batches: Iterator[_Batch], encode: Callable[[_Batch], TokenBatch]
) -> Generator[TokenBatch, None, None]:
    """The batches, encoded in order, while one thread reads the next ones and others encode them."""
    with ThreadPoolExecutor(1, "read") as reader, ThreadPoolExecutor(_ENCODERS, "encode") as encoders:

        def encode_read(read: Future[_Batch | None]) -> TokenBatch | None:
            batch = read.result()
            return None if batch is None else encode(batch)

        def submit() -> Future[TokenBatch | None]:
            return encoders.submit(encode_read, reader.submit(next, batches, None))

        pending = deque(submit() for _ in range(_BATCHES_AHEAD))
        try:
            while (batch := pending.popleft().result()) is not None:
                pending.append(submit())
                yield batch
        finally:
            for future in pending:
                future.cancel()


def unread(
    files: Sequence[WorkFile],
    position: Position,
    bad_records: BadRecords,
    read: Callable[[int, Path, range | None], Iterator[_Item]],
) -> Iterator[tuple[int, int, _Item]]:
    """(file, number of its items read so far, item) for each item after `position`, as `read` gives those of a file."""
    for file_index in range(position.file, len(files)):
        done = position.pieces if file_index == position.file else 0
        for count, item in enumerate(read(*files[file_index]), 1):
            if count > done:
                yield file_index, count, item
            elif count == done:  # the position already counts the bad records that were met up to here
                bad_records.count, bad_records.first = position.bad_record_count, position.first_bad_records
                bad_records.empty = position.empty_records


def _text_batches(
    data: DataConfig, files: Sequence[WorkFile], position: Position, passages: PassageSplit | None
) -> Generator[_TextBatch, None, None]:
    record_texts = [RecordText(source) for source in data.sources]
    bad_records = BadRecords(
        data.on_bad_record, position.bad_record_count, position.first_bad_records, position.empty_records
    )
    batch_chars = max(BATCH_CHARS, PIECE_CHARS * (os.cpu_count() or 1))
    in_validation = position.in_validation
    batch = _TextBatch(position)

    def read(source_index: int, path: Path, span: range | None) -> Iterator[Document]:
        return read_documents(path, record_texts[source_index], bad_records, span)

    for file_index, count, document in unread(files, position, bad_records, read):
        source = files[file_index][0]
        if passages is not None:
            for text, in_validation in passages.parts(document.text):
                part = Document(text, document.origin, document.bytes_read)
                batch.add(part, in_validation, len(text.encode()), source)
        else:
            utf8 = document.text.encode()
            if document.begins:
                in_validation = is_validation(utf8, data.validation_fraction)
            batch.add(document, in_validation, len(utf8), source)
        if batch.chars >= batch_chars:
            batch.position = Position(
                file_index,
                count,
                document.bytes_read,
                in_validation,
                bad_records.count,
                bad_records.first,
                empty_records=bad_records.empty,
            )
            yield batch
            batch = _TextBatch(batch.position)
    batch.position = Position(
        len(files), 0, 0, in_validation, bad_records.count, bad_records.first, empty_records=bad_records.empty
    )
    yield batch


def is_validation(text: bytes, fraction: float) -> bool:
    """Whether a text goes to the validation split, which depends on the text alone."""
    return text_hash(text) < fraction * 2**64


def _encode(tokenizer: Tokenizer, batch: _TextBatch) -> TokenBatch:
    ids, lengths = tokenizer.encode_joined(batch.texts, batch.begins)
    begins, ends = np.array(batch.begins, bool), np.array(batch.ends, bool)
    whole_lengths = lengths + begins + ends
    starts = np.cumsum(whole_lengths) - whole_lengths
    tokens = np.empty(int(whole_lengths.sum()), np.int32)
    is_text = np.ones(len(tokens), bool)
    for places, token_id in (
        (starts[begins], tokenizer.bos_token_id),
        ((starts + whole_lengths - 1)[ends], tokenizer.eos_token_id),
    ):
        tokens[places] = token_id
        is_text[places] = False
    tokens[is_text] = ids
    return TokenBatch(
        tokens,
        starts,
        begins,
        np.array(batch.in_validation, bool),
        np.array(batch.text_bytes, np.int64),
        np.array(batch.sources, np.int64),
        batch.position,
    )

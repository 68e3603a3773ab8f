"""Streams the sources' conversations as samples, which say of each token whether it is trained on."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from stellarbyte.chat.conversations import parse_record
from stellarbyte.chat.encoding import ChatEncoder, RenderedChat, Sample
from stellarbyte.chat.told import Told
from stellarbyte.records.bad_records import BadRecords, RecordError
from stellarbyte.records.formats import read_records
from stellarbyte.records.record import Record
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.chat_template import chat_tokenizer
from stellarbyte_jax.data.documents import PIECE_CHARS
from stellarbyte_jax.data.encoding_ahead import (
    BATCH_CHARS,
    Position,
    TokenBatch,
    WorkFile,
    encoded_ahead,
    is_validation,
    unread,
)
from stellarbyte_jax.data.manifest import SampleCounts
from stellarbyte_jax.data.tokenizer import Tokenizer

# A token of a sample, and whether it is trained on.
SAMPLE_DTYPE = np.dtype([("token", np.int32), ("trained", np.bool_)])


@dataclass
class _ChatBatch:
    position: Position
    chats: list[RenderedChat] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)  # of each chat
    chars: int = 0


def tokenized_chat(
    data: DataConfig, tokenizer: Tokenizer, files: Sequence[WorkFile], position: Position
) -> Generator[TokenBatch, None, None]:
    """Like `tokenized`, but for conversations: each sample is a document, and its tokens are SAMPLE_DTYPE.

    Raises:
        UserError: a template is missing or is not Jinja, or a record is bad and data.on_bad_record is fail.
    """
    encoder = ChatEncoder(chat_tokenizer(tokenizer, data.chat_template))
    rendered = _rendered(data, encoder, files, position)
    samples = position.samples
    with closing(encoded_ahead(rendered, partial(_encode, data, encoder, tokenizer.byte_lengths))) as batches:
        for batch in batches:
            samples += batch.position.samples
            yield replace(batch, position=replace(batch.position, samples=samples))


def _rendered(
    data: DataConfig, encoder: ChatEncoder, files: Sequence[WorkFile], position: Position
) -> Iterator[_ChatBatch]:
    bad_records = BadRecords(data.on_bad_record, position.bad_record_count, position.first_bad_records)
    batch_chars = max(BATCH_CHARS, PIECE_CHARS * (os.cpu_count() or 1))

    def read(_: int, path: Path, span: range | None) -> Iterator[Record]:
        return read_records(path, bad_records, span=span)

    batch = _ChatBatch(Position())
    for file_index, count, (record, where, bytes_read) in unread(files, position, bad_records, read):
        try:
            source = files[file_index][0]
            chat = encoder.render(parse_record(record, where, data.sources[source].format), data.loss_on)
        except RecordError as error:
            bad_records.add(str(error))
            continue
        batch.chats.append(chat)
        batch.sources.append(source)
        batch.chars += len(chat.text)
        if batch.chars >= batch_chars:
            batch.position = Position(file_index, count, bytes_read, False, bad_records.count, bad_records.first)
            yield batch
            batch = _ChatBatch(Position())
    batch.position = Position(len(files), 0, 0, False, bad_records.count, bad_records.first)
    yield batch


def _encode(data: DataConfig, encoder: ChatEncoder, byte_lengths: np.ndarray, batch: _ChatBatch) -> TokenBatch:
    """The batch's samples; its position counts the samples of this batch alone."""
    samples: list[np.ndarray] = []
    in_validation: list[bool] = []
    sources: list[int] = []
    too_long = cut_tokens = untrained = 0
    told = sum((chat.told for chat in batch.chats), start=Told())
    for chat, source, sample in zip(batch.chats, batch.sources, encoder.encode(batch.chats), strict=True):
        pieces = sample.fitting(data.sequence_length, data.on_too_long)
        too_long += len(sample) > data.sequence_length
        cut_tokens += len(sample) - sum(map(len, pieces))
        trained = [_as_items(piece) for piece in pieces if piece.trained.any()]
        untrained += len(pieces) - len(trained)
        samples += trained
        sources += [source] * len(trained)
        # The whole conversation decides, so that all samples made of it are in the same split.
        in_validation += [is_validation(chat.text.encode(), data.validation_fraction)] * len(trained)

    tokens = np.concatenate(samples) if samples else np.empty(0, SAMPLE_DTYPE)
    ends = np.cumsum([len(sample) for sample in samples], dtype=np.int64)
    counts = SampleCounts(
        int(tokens["trained"].sum()), too_long, cut_tokens, untrained, told.unended, told.thoughtless, told.unwritten
    )
    counts = replace(counts, unused=",".join(sorted(told.unused)))
    return TokenBatch(
        tokens=tokens,
        starts=np.append(np.int64(0), ends)[:-1],
        begins=np.ones(len(samples), bool),
        in_validation=np.array(in_validation, bool),
        text_bytes=np.array([byte_lengths[sample["token"]].sum() for sample in samples], np.int64),
        sources=np.array(sources, np.int64),
        position=replace(batch.position, samples=counts),
    )


def _as_items(sample: Sample) -> np.ndarray:
    items = np.empty(len(sample), SAMPLE_DTYPE)
    items["token"], items["trained"] = sample.input_ids, sample.trained
    return items

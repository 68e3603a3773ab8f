"""Reads the data that a config names, and encodes it into what a Trainer trains on."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from stellarbyte.chat.conversations import Conversation, parse_record
from stellarbyte.chat.encoding import ChatEncoder, RenderedChat, Sample
from stellarbyte.chat.packing import pack, samples_of_rows
from stellarbyte.chat.template import read_template
from stellarbyte.chat.told import Told
from stellarbyte.errors import UserError
from stellarbyte.records.bad_records import BadRecords, RecordError
from stellarbyte.records.formats import read_records
from stellarbyte.records.sources import files_of_sources
from stellarbyte_torch.data.collation import Item, PackedDataset, PackingCollator, PaddingCollator, SampleDataset
from stellarbyte_torch.data.config import DataConfig
from stellarbyte_torch.data.tokenizer import chat_tokenizer

# How many conversations, and how many characters of them, are encoded at a time, on all cores: encoding takes some 50
# bytes of memory a character.
_BATCH, _BATCH_CHARACTERS = 512, 1 << 22

# In tokens. A single text is split into passages of at least this length; with fewer than two, none is for validation.
_SHORTEST_PASSAGE = 16


@dataclass(frozen=True)
class Samples:
    """The samples of both splits, and figures about the records that they come from.

    first_bad: sentences about the first few bad records. too_long: the number of records with more than
    sequence_length tokens. cut_tokens: the number of their tokens that are in no sample. untrained: the number of
    samples left out because they had no trained token. tokens, trained_tokens: counts over both splits. remarks:
    further sentences that a user should read.
    """

    train: list[Sample]
    validation: list[Sample]
    records: int
    bad_records: int
    first_bad: tuple[str, ...]
    too_long: int
    cut_tokens: int
    untrained: int
    tokens: int
    trained_tokens: int
    seconds: float
    remarks: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line about the samples, and about records or tokens that were left out."""
        share = self.trained_tokens / self.tokens
        line = (
            f"{self.records} records: {len(self.train)} training and {len(self.validation)} validation samples, "
            f"{self.tokens} tokens, {self.trained_tokens} ({share:.0%}) of them trained"
        )
        if self.too_long:
            line += f"; {self.too_long} too long, {self.cut_tokens} tokens cut off"
        if self.untrained:
            line += f"; {self.untrained} left out without a trained token"
        if self.bad_records:
            more = "; …" if self.bad_records > len(self.first_bad) else ""
            line += f"; {self.bad_records} bad records skipped: {'; '.join(self.first_bad)}{more}"
        return "; ".join((line, *self.remarks))


@dataclass(frozen=True)
class PreparedData:
    """What a Trainer needs: the datasets, the collator, and arguments for TrainingArguments.

    validation is None if no sample was set apart.
    """

    train: Dataset[Item]
    validation: Dataset[Item] | None
    collator: PaddingCollator | PackingCollator
    trainer_arguments: dict[str, Any]
    samples: Samples


def prepare_data(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, progress: Callable[[int], None] | None = None
) -> PreparedData:
    """The datasets and the collator for a config: packed rows, or single samples to be batched by similar length.

    `progress` is called with the number of conversations read so far. The same config, files and tokenizer give the
    same data.

    Raises:
        UserError: where `read_samples` does.
    """
    samples = read_samples(config, tokenizer, progress)
    pad_token_id = next(token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if token is not None)

    def dataset(split: list[Sample]) -> Dataset[Item]:
        if not config.packing:
            return SampleDataset(split)
        rows = pack([len(sample) for sample in split], config.sequence_length, config.seed)
        return PackedDataset(split, samples_of_rows(rows))

    return PreparedData(
        train=dataset(samples.train),
        validation=dataset(samples.validation) if samples.validation else None,
        collator=PackingCollator(pad_token_id, config.sequence_length)
        if config.packing
        else PaddingCollator(pad_token_id),
        trainer_arguments={
            "remove_unused_columns": False,
            "train_sampling_strategy": "random" if config.packing else "group_by_length",
            "use_cache": False,  # with a cache, many models of transformers do not keep packed samples apart
        },
        samples=samples,
    )


def _batches(conversations: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    """The conversations in batches to encode, each of so many at most, or of so much text."""
    batch: list[Conversation] = []
    characters = 0
    for conversation in conversations:
        batch.append(conversation)
        values = (value for message in conversation.messages for value in message.values())
        characters += len(conversation.text) + sum(len(value) for value in values if isinstance(value, str))
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def read_samples(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, progress: Callable[[int], None] | None = None
) -> Samples:
    """Reads all sources, encodes them, and sets validation samples apart.

    If a single text is the only sample, it is first cut into passages, so that some of them can be set apart.

    Raises:
        UserError: a source is missing or cannot be read; a record is bad; a template is missing; no sample is left.
    """
    started = time.perf_counter()
    template = read_template(config.chat_template, "data.chat_template")
    encoder = ChatEncoder(chat_tokenizer(tokenizer, template), datetime.now())
    bad_records = BadRecords(config.on_bad_record, setting="data.on_bad_record")
    remarks: list[str] = []
    samples: list[Sample] = []
    conversations_read = unsuitable = too_long = cut_tokens = untrained = 0
    told, only_texts = Told(), True
    conversations = _conversations(config, bad_records, remarks)
    for batch in _batches(conversations):
        conversations_read += len(batch)
        chats: list[RenderedChat] = []
        only_texts = only_texts and not any(conversation.messages for conversation in batch)
        for conversation in batch:
            try:
                chats.append(encoder.render(conversation, config.loss_on))
            except RecordError as error:
                bad_records.add(str(error))
                unsuitable += 1
        told = sum((chat.told for chat in chats), start=told)
        for sample in encoder.encode(chats):
            pieces = sample.fitting(config.sequence_length, config.on_too_long)
            if len(sample) > config.sequence_length:
                too_long += 1
                cut_tokens += len(sample) - sum(map(len, pieces))
            trained = [piece for piece in pieces if piece.trained.any()]
            untrained += len(pieces) - len(trained)
            samples += trained
        if progress is not None:
            progress(conversations_read)
    records = conversations_read + bad_records.count - unsuitable
    if not samples:
        first = f" (such as {bad_records.first[0]})" if bad_records.first else ""
        raise UserError(
            f"data.sources give no sample to train on: of {records} records {bad_records.count} were bad{first}, "
            f"{too_long} too long for sequence_length {config.sequence_length}, and {untrained} samples had no trained "
            "token"
        )
    if len(samples) == 1 and only_texts and config.validation_fraction > 0:
        samples = samples[0].fitting(max(len(samples[0]) // 10, _SHORTEST_PASSAGE), "split")
    train, validation = _split(samples, config)
    return Samples(
        train=train,
        validation=validation,
        records=records,
        bad_records=bad_records.count,
        first_bad=bad_records.first,
        too_long=too_long,
        cut_tokens=cut_tokens,
        untrained=untrained,
        tokens=sum(map(len, samples)),
        trained_tokens=sum(int(sample.trained.sum()) for sample in samples),
        seconds=time.perf_counter() - started,
        remarks=(*remarks, *told.sentences()),
    )


def _conversations(config: DataConfig, bad_records: BadRecords, remarks: list[str]) -> Iterator[Conversation]:
    sources = [(source.path, source.format) for source in config.sources]
    for index, path in files_of_sources(sources, remarks.append):
        for record in read_records(path, bad_records):
            try:
                conversation = parse_record(record.fields, record.where, config.sources[index].format)
            except RecordError as error:
                bad_records.add(str(error))
            else:
                yield conversation


def _split(samples: list[Sample], config: DataConfig) -> tuple[list[Sample], list[Sample]]:
    """Training and validation samples, in order. A hash of a sample's tokens and the seed decides where it goes."""
    if config.validation_fraction == 0 or len(samples) < 2:
        return samples, []
    salt = config.seed.to_bytes(16, "little")
    digests = [hashlib.blake2b(sample.input_ids.tobytes(), digest_size=16, salt=salt).digest() for sample in samples]
    count = max(1, round(len(samples) * config.validation_fraction))
    last = sorted(digests)[count - 1]
    apart = [digest <= last for digest in digests]
    if all(apart):  # the fraction is large, or nearly all samples are equal
        apart = [digest < last for digest in digests]
    if not any(apart):  # all samples are equal, and must go to the same side
        return samples, []
    train = [sample for sample, is_apart in zip(samples, apart, strict=True) if not is_apart]
    validation = [sample for sample, is_apart in zip(samples, apart, strict=True) if is_apart]
    return train, validation

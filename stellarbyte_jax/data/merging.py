"""Reads the token shards of parts one after another, as if their sources were read at one go."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from stellarbyte.records.bad_records import BadRecords
from stellarbyte_jax.data.encoding_ahead import Position, TokenBatch
from stellarbyte_jax.data.manifest import SPLITS, Manifest, SampleCounts
from stellarbyte_jax.data.shard_writer import SplitState
from stellarbyte_jax.data.token_shards import TokenShards

_TOKENS_AT_ONCE = 1 << 20


def merged_batches(
    folders: Sequence[Path], manifests: Sequence[Manifest], position: Position
) -> Generator[TokenBatch, None, None]:
    """The tokens of all parts after `position`, which counts parts and, of the next one, the tokens of both splits.

    Raises:
        UserError: a part is damaged.
    """
    for number in range(position.file, len(folders)):
        manifest = manifests[number]
        done, before = position.pieces if number == position.file else 0, 0
        for split in SPLITS:
            for batch in _batches(folders[number], split, manifest, max(done - before, 0)):
                done += len(batch.tokens)
                yield replace(batch, position=replace(position, file=number, pieces=done, bytes_read=done))
            before += manifest.splits[split].tokens
        position = _after(position, number, manifest)
        yield _nothing(manifest, position)


def _after(position: Position, number: int, manifest: Manifest) -> Position:
    # The first bad records of the first parts are the first ones of the whole, of which as many are kept.
    kept = BadRecords("skip", position.bad_record_count, position.first_bad_records)
    for complaint in manifest.first_bad_records:
        kept.add(complaint)
    return replace(
        position,
        file=number + 1,
        pieces=0,
        bytes_read=0,
        bad_record_count=position.bad_record_count + manifest.bad_record_count,
        first_bad_records=kept.first,
        samples=position.samples + (manifest.samples or SampleCounts()),
        empty_records=position.empty_records + manifest.empty_records,
    )


def _batches(folder: Path, split: str, manifest: Manifest, begin: int) -> Iterator[TokenBatch]:
    """The blocks of a part's split from token `begin` on; they need a position yet."""
    assert manifest.part is not None
    shards, state = TokenShards(folder, split, manifest), manifest.part.splits[split]
    borders = np.cumsum(state.source_tokens)
    while begin < shards.tokens:
        stop = min(begin + _TOKENS_AT_ONCE, shards.tokens)
        documents = (
            shards.starts_within(begin - 1, stop - 1) if begin else np.append(0, shards.starts_within(0, stop - 1))
        )
        # A document that began in an earlier block goes on here.
        goes_on = len(documents) == 0 or documents[0] != begin
        pieces = np.append(begin, documents) if goes_on else documents
        begins = np.ones(len(pieces), bool)
        begins[0] = not goes_on
        yield TokenBatch(
            tokens=shards.read(begin, stop),
            starts=pieces - begin,
            begins=begins,
            in_validation=np.full(len(pieces), split == "validation"),
            text_bytes=_bytes(state, pieces, begins),
            sources=np.searchsorted(borders, pieces, side="right"),
            position=Position(),
        )
        begin = stop


def _bytes(state: SplitState, pieces: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """Bytes of text whose sums are right at the part's end: only those of its last document are known alone."""
    text_bytes = np.where(begins & (pieces == state.last_start), state.last_bytes, 0)
    if pieces[0] == 0:
        text_bytes[0] += state.bytes - state.last_bytes
    return text_bytes


def _nothing(manifest: Manifest, position: Position) -> TokenBatch:
    empty = np.empty(0, np.int64)
    flags = np.empty(0, bool)
    return TokenBatch(np.empty(0, manifest.recipe.item_dtype), empty, flags, flags, empty, empty, position)

"""Makes a folder of token shards from a stream of tokens, and goes on from where it stopped if it was interrupted."""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.files import write_json
from stellarbyte.records.bad_records import BadRecords
from stellarbyte.records.sources import status_of
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.encoding_ahead import Position, TokenBatch
from stellarbyte_jax.data.manifest import SPLITS, Manifest, PartFacts, SplitCounts
from stellarbyte_jax.data.recipe import Recipe
from stellarbyte_jax.data.shard_writer import ShardWriter, SplitState, sums_path
from stellarbyte_jax.data.unfinished import (
    POSITION_NAME,
    RECIPE_NAME,
    load_position,
    load_recipe,
    save_position,
)

_TOKENS_PER_CHECKPOINT = 1 << 23


@dataclass(frozen=True)
class PrepareProgress:
    """How far `prepare` is: documents and tokens written, bytes read and bytes of all source files (as stored)."""

    documents: int
    tokens: int
    bytes_done: int
    bytes_total: int


@dataclass(frozen=True)
class Job:
    """A folder of token shards to make, and what of.

    recipe: gives the folder's recipe; what it is called with is the recipe that the unfinished folder has, if any.
    batches: gives the tokens from a position on.
    sizes: the bytes of each thing that Position.file counts, for the progress.
    files: the sources' files in the order of the recipe; None for those that are not read here.
    parts: the number of parts that are merged; 0 if the sources are read themselves.
    part: (its number, the number of all parts) if only a part is made, which may lack a split, or all text.
    exact: makes of a complaint about a record the one that users see.
    """

    data: DataConfig
    folder: Path
    recipe: Callable[[Recipe | None], Recipe]
    batches: Callable[[Recipe, Position], Generator[TokenBatch, None, None]]
    sizes: Callable[[Recipe], Sequence[int]]
    files: tuple[Path | None, ...]
    parts: int = 0
    part: tuple[int, int] | None = None
    exact: Callable[[str], str] = str


def make_shards(
    job: Job, progress: Callable[[PrepareProgress], None] | None, report: Callable[[str], None]
) -> Manifest:
    """Makes the folder, from where it was left if it is unfinished. The caller has locked it. Raises as `prepare`."""
    data, folder = job.data, job.folder
    known = load_recipe(folder, report)
    recipe = job.recipe(known)
    reached = None if known is None else load_position(folder, known, report)
    if known is not None and reached is not None:
        states = reached[1]
        if sum(state.tokens for state in states.values()) >= _TOKENS_PER_CHECKPOINT:
            check_same(folder, known, recipe, grouping=True)
            _check_same_work(folder, reached[0], job)
        elif any(recipe.differences(known)) or any(recipe.regrouped(known)) or reached[0].parts != job.parts:
            reached = None  # the sources may have been mended; starting over loses only seconds
    if reached is not None:
        position, states = reached
        if known is not None and known.source_file_counts is None:  # begun by an earlier version
            recipe = replace(recipe, source_file_counts=None)
        check_policy(data, folder, BadRecords("skip", position.bad_record_count, position.first_bad_records))
    else:
        position, states = Position(parts=job.parts), {split: SplitState() for split in SPLITS}
        (folder / POSITION_NAME).unlink(missing_ok=True)  # before its recipe is overwritten
        write_json(folder / RECIPE_NAME, asdict(recipe))
    writers = {
        split: ShardWriter(folder, split, recipe.item_dtype, recipe.tokens_per_shard, states[split]) for split in SPLITS
    }
    try:
        batches = job.batches(recipe, position)
        position = _write_splits(batches, job.sizes(recipe), position, folder, writers, progress)
        if job.part is None and not any(state.documents for state in states.values()):
            paths = ", ".join(source.path for source in data.sources)
            found = "hold no text" if data.kind == "text" else f"give no sample ({position.samples.summary()})"
            raise UserError(f"data.sources {paths} {found}: name a source that has some")
        _check_unchanged(recipe, job.files, folder)
        written = _states(writers)
        if job.part is None:
            _fill_empty_split(writers, recipe, position, folder)
        sums = {name: blocks for writer in writers.values() for name, blocks in writer.finish().items()}
    finally:
        for writer in writers.values():
            writer.close()

    manifest = Manifest(
        recipe=recipe,
        splits={split: SplitCounts(state.tokens, state.documents, state.bytes) for split, state in states.items()},
        checksums={name: blocks.astype(">u4").tobytes().hex() for name, blocks in sums.items()},
        samples=position.samples if data.kind == "chat" else None,
        bad_record_count=position.bad_record_count,
        first_bad_records=tuple(map(job.exact, position.first_bad_records)),
        empty_records=position.empty_records,
        source_tokens=_source_tokens(recipe, states),
        part=None if job.part is None else PartFacts(*job.part, written),
    )
    manifest.save(folder)
    unfinished = (sums_path(folder, split) for split in SPLITS)
    for path in (folder / RECIPE_NAME, folder / POSITION_NAME, *unfinished):
        path.unlink(missing_ok=True)
    return manifest


def _write_splits(
    batches: Generator[TokenBatch, None, None],
    sizes: Sequence[int],
    position: Position,
    folder: Path,
    writers: dict[str, ShardWriter],
    progress: Callable[[PrepareProgress], None] | None,
) -> Position:
    """Appends all batches; if anything ends this early, the position reached is saved nevertheless."""
    bytes_before = [0, *accumulate(sizes)]
    since_checkpoint = 0
    states = _states(writers)
    try:
        for batch in batches:
            _append(batch, writers)
            position, states = batch.position, _states(writers)
            since_checkpoint += len(batch.tokens)
            if since_checkpoint >= _TOKENS_PER_CHECKPOINT:
                save_position(folder, position, states, writers)
                since_checkpoint = 0
            if progress is not None:
                progress(
                    PrepareProgress(
                        documents=sum(state.documents for state in states.values()),
                        tokens=sum(state.tokens for state in states.values()),
                        bytes_done=bytes_before[position.file] + position.bytes_read,
                        bytes_total=bytes_before[-1],
                    )
                )
    finally:
        # The states are those after the last whole batch; a batch that was appended in part is cut off on resuming.
        batches.close()
        save_position(folder, position, states, writers)
    return position


def _append(batch: TokenBatch, writers: dict[str, ShardWriter]) -> None:
    lengths = np.diff(batch.starts, append=len(batch.tokens))
    for split, chosen in (("train", ~batch.in_validation), ("validation", batch.in_validation)):
        if not chosen.any():
            continue
        tokens = batch.tokens if chosen.all() else batch.tokens[np.repeat(chosen, lengths)]
        starts = np.cumsum(lengths[chosen]) - lengths[chosen]
        writers[split].append(tokens, starts, batch.begins[chosen], batch.text_bytes[chosen])
        writers[split].state.add_to_sources(batch.sources[chosen], lengths[chosen])


def _fill_empty_split(writers: dict[str, ShardWriter], recipe: Recipe, position: Position, folder: Path) -> None:
    """Moves the last document to a split that a small corpus left empty, unless validation is meant to be empty."""
    train, validation = writers["train"], writers["validation"]
    if train.state.documents == 0:
        source, target = validation, train
    elif validation.state.documents == 0 and train.state.documents > 1 and recipe.validation_fraction > 0:
        source, target = train, validation
    else:
        return
    moved = source.state
    length, from_source = moved.tokens - moved.last_start, np.flatnonzero(moved.source_tokens)[-1:]
    for index, block in enumerate(source.last_document()):
        text_bytes = moved.last_bytes if index == 0 else 0
        target.append(block, np.zeros(1, np.int64), np.array([index == 0]), np.array([text_bytes]))
    target.state.add_to_sources(from_source, np.array([length]))
    moved.add_to_sources(from_source, np.array([-length]))
    moved.tokens = moved.last_start
    moved.documents -= 1
    moved.bytes -= moved.last_bytes
    # The document may be removed from its old place only after the new position is saved.
    save_position(folder, position, _states(writers), writers)
    source.cut_back()


def _source_tokens(recipe: Recipe, states: Mapping[str, SplitState]) -> dict[str, tuple[int, ...]] | None:
    """Split -> the tokens of each source; None if the folder was begun by a version that did not count them."""
    if recipe.source_file_counts is None:
        return None
    sources = len(recipe.source_file_counts)
    return {
        split: (*state.source_tokens, *(0,) * (sources - len(state.source_tokens))) for split, state in states.items()
    }


def _states(writers: dict[str, ShardWriter]) -> dict[str, SplitState]:
    return {split: replace(writer.state) for split, writer in writers.items()}


def check_same(folder: Path, known: Recipe, wanted: Recipe, *, grouping: bool) -> None:
    """Refuses a folder that was made of something else; `grouping`: also one of the same files as other sources."""
    differences = "; ".join([*wanted.differences(known), *(wanted.regrouped(known) if grouping else ())])
    if differences:
        raise UserError(
            f"{folder} holds token shards made of something else ({differences}): "
            "set data.shards to another folder, or delete this one"
        )


def _check_same_work(folder: Path, position: Position, job: Job) -> None:
    if position.parts != job.parts:
        doing = [
            f"merge of {parts} parts" if parts else "prepare of the sources" for parts in (position.parts, job.parts)
        ]
        raise UserError(f"{folder} holds an unfinished {doing[0]}: go on with that, or delete the folder to {doing[1]}")


def _check_unchanged(recipe: Recipe, files: Sequence[Path | None], folder: Path) -> None:
    for known, path in zip(recipe.source_files, files, strict=True):
        if path is None:
            continue
        status = status_of(path)
        if (status.st_size, status.st_mtime_ns) != (known.size, known.mtime_ns):
            raise UserError(f"{known.path} was changed while it was read: delete {folder} and prepare again")


def check_policy(data: DataConfig, folder: Path, bad_records: BadRecords) -> None:
    """Refuses a folder in which bad records were left out, if the config says that one is to fail."""
    summary = bad_records.summary()
    if bad_records.count and data.on_bad_record == "fail":
        raise UserError(
            f"{folder} was prepared with data.on_bad_record skip and left records out ({summary}): "
            "set it to skip, or mend them and delete the folder"
        )

"""Turns text into token shards, and goes on from where it stopped if it was interrupted."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from stellarbyte.errors import UserError
from stellarbyte.folder_lock import folder_lock
from stellarbyte.places import local
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.chat import tokenized_chat
from stellarbyte_jax.data.corpus import files_of
from stellarbyte_jax.data.encoding_ahead import Position, TokenBatch, WorkFile, tokenized
from stellarbyte_jax.data.making import Job, PrepareProgress, check_policy, check_same, make_shards
from stellarbyte_jax.data.manifest import MANIFEST_NAME, Manifest
from stellarbyte_jax.data.recipe import Recipe
from stellarbyte_jax.data.tokenizer import Tokenizer

PARTS_NAME = "parts"  # the folder of parts, inside that of the whole


def prepare(
    data: DataConfig,
    progress: Callable[[PrepareProgress], None] | None = None,
    report: Callable[[str], None] = print,
) -> Manifest:
    """Tokenizes the sources of `data` into the folder data.shards, and returns its manifest.

    An unfinished folder is resumed, a finished one stays as it is. A document becomes [bos] + tokens + [eos]. The hash
    of its text (of the first documents.PIECE_CHARS of a long one), or of a conversation's text, decides whether it goes
    to the validation split. If the training split stays empty, or the validation split although there are several
    documents, the last document moves there. If documents are few and long, passages of them are the validation split:
    see passages.py. Memory is that of a few batches of text. The result is the same to the last byte, however often
    `prepare` was interrupted.

    Raises:
        UserError: a source is missing, bad or empty; the tokenizer is missing; the folder holds finished or far
            advanced shards that were made from something else; another process works in it; or the disk is full.
    """
    tokenizer = Tokenizer.load(data.tokenizer)
    files = files_of(data.sources, report)
    folder = local(
        data.shards,
        "data.shards",
        "`prepare` appends to files, which no bucket allows: prepare them into a folder of this machine, and copy that "
        "(`gcloud storage cp -r`, `aws s3 cp --recursive`)",
    )
    manifest = finished(data, tokenizer, files, folder)
    if manifest is not None:
        return manifest
    try:
        with folder_lock(folder, doing="prepare"):
            folder.mkdir(parents=True, exist_ok=True)
            # Another process may have finished since.
            manifest = finished(data, tokenizer, files, folder)
            if manifest is None:
                tell_of_changes(tokenizer, report)
                manifest = _make(data, tokenizer, files, folder, progress, report)
                tell_of_bad_records(manifest, report)
            return manifest
    except OSError as error:
        raise UserError(f"the token shards cannot be written to {folder}: {error.strerror or error}") from None


def tell_of_changes(tokenizer: Tokenizer, report: Callable[[str], None]) -> None:
    """Reports what the tokenizer changes in texts, if it does; `Tokenizer.changes` tells."""
    for change in tokenizer.changes:
        report(f"The tokenizer {tokenizer.name} {change}, and bits per byte are of what it makes of a text.")


def tell_of_bad_records(manifest: Manifest, report: Callable[[str], None]) -> None:
    """Reports the records that were left out, if there are any."""
    summary = manifest.bad_records.summary()
    if summary is not None:
        report(summary)


def finished(data: DataConfig, tokenizer: Tokenizer, files: list[tuple[int, Path]], folder: Path) -> Manifest | None:
    """The manifest of a finished folder; None if it is not finished. Raises UserError if it is of something else."""
    if not (folder / MANIFEST_NAME).exists():
        return None
    manifest = Manifest.load(folder)
    recipe = Recipe.make(data, tokenizer, files, manifest.recipe)
    check_same(folder, manifest.recipe, recipe, grouping=data.weights is not None)
    check_policy(data, folder, manifest.bad_records)
    return manifest


def _make(
    data: DataConfig,
    tokenizer: Tokenizer,
    files: list[tuple[int, Path]],
    folder: Path,
    progress: Callable[[PrepareProgress], None] | None,
    report: Callable[[str], None],
) -> Manifest:
    if any((folder / PARTS_NAME).glob("*")):
        raise UserError(
            f"{folder / PARTS_NAME} holds parts of these token shards: merge them with --merge and their number, or "
            "delete it"
        )
    work = [WorkFile(*file) for file in files]

    def batches(recipe: Recipe, position: Position) -> Generator[TokenBatch, None, None]:
        return source_batches(data, tokenizer, work, position, recipe)

    job = Job(
        data,
        folder,
        recipe=lambda known: Recipe.make(data, tokenizer, files, known),
        batches=batches,
        sizes=lambda recipe: [file.size for file in recipe.source_files],
        files=tuple(path for _, path in files),
    )
    return make_shards(job, progress, report)


def source_batches(
    data: DataConfig, tokenizer: Tokenizer, files: Sequence[WorkFile], position: Position, recipe: Recipe
) -> Generator[TokenBatch, None, None]:
    """The tokens of files of sources from a position on."""
    if data.kind == "text":
        return tokenized(data, tokenizer, files, position, recipe.passages)
    return tokenized_chat(data, tokenizer, files, position)

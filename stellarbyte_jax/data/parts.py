"""Prepares token shards in parts, by independent jobs, and merges these into exactly what one job writes."""

import re
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from stellarbyte.errors import UserError, first_of, shown_path
from stellarbyte.folder_lock import folder_lock
from stellarbyte.records.compression import BLOCK_BYTES
from stellarbyte.records.formats import can_be_split
from stellarbyte.records.sources import status_of
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.corpus import files_of
from stellarbyte_jax.data.encoding_ahead import Position, TokenBatch, WorkFile
from stellarbyte_jax.data.making import Job, PrepareProgress, check_policy, check_same, make_shards
from stellarbyte_jax.data.manifest import MANIFEST_NAME, SPLITS, Manifest
from stellarbyte_jax.data.merging import merged_batches
from stellarbyte_jax.data.prepare import PARTS_NAME, finished, source_batches, tell_of_bad_records
from stellarbyte_jax.data.recipe import UNREAD, Recipe
from stellarbyte_jax.data.tokenizer import Tokenizer

_MOST_PARTS = 100_000
_PARTS_NAMED = 8


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`; numbers begin with 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that "3/64" names. Raises UserError if it names none."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
        number, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= count <= _MOST_PARTS or not 1 <= number <= count:
            raise UserError(f"--part {text} names no part: write 3/64 for the third of 64; the last one is 64/64")
        return cls(number, count)

    def folder(self, shards: Path) -> Path:
        """The part's own folder of token shards, in that of the whole."""
        return shards / PARTS_NAME / f"{self.number:05d}-of-{self.count:05d}"

    def work(self, files: Sequence[tuple[int, Path]], sizes: Sequence[int]) -> Iterator[tuple[int, WorkFile]]:
        """(the number of a file among all, what this part reads of it): an equal share of all bytes, if it can be.

        Of a file that can be split the part has the records that begin in its share, of another one all or nothing.
        """
        total = sum(sizes)
        low, high = total * (self.number - 1) // self.count, total * self.number // self.count
        begins = accumulate(sizes, initial=0)
        for index, ((source, path), size, begin) in enumerate(zip(files, sizes, begins)):  # noqa: B905 - one more
            if can_be_split(path) and size:
                span = range(max(low - begin, 0), min(high - begin, size))
                if span:
                    yield index, WorkFile(source, path, None if len(span) == size else span)
            elif low <= begin < high or (begin == high == total and self.number == self.count):
                yield index, WorkFile(source, path)


def prepare_part(
    data: DataConfig,
    part: Part,
    progress: Callable[[PrepareProgress], None] | None = None,
    report: Callable[[str], None] = print,
) -> Manifest:
    """Makes one part of the folder data.shards in a sub-folder, and returns its manifest; `merge` joins all of them.

    Parts may be made in any order, and at the same time on machines that see the same files. An interrupted one is
    resumed, a finished one stays as it is.

    Raises:
        UserError: as `prepare`.
    """
    tokenizer = Tokenizer.load(data.tokenizer)
    files = files_of(data.sources, report)
    whole, folder = Path(data.shards), part.folder(Path(data.shards))
    manifest = finished(data, tokenizer, files, whole)
    if manifest is not None:
        return manifest
    try:
        with folder_lock(folder, doing=f"prepare --part {part}"):
            folder.mkdir(parents=True, exist_ok=True)
            job = _job(data, tokenizer, files, part)
            if (folder / MANIFEST_NAME).exists():
                manifest = Manifest.load(folder)
                check_same(folder, manifest.recipe, job.recipe(manifest.recipe), grouping=True)
                check_policy(data, folder, manifest.bad_records)
                return manifest
            try:
                manifest = make_shards(job, progress, report)
            except UserError as error:
                raise UserError(job.exact(str(error))) from None
            tell_of_bad_records(manifest, report)
            return manifest
    except OSError as error:
        raise UserError(f"the token shards cannot be written to {folder}: {error.strerror or error}") from None


def _job(data: DataConfig, tokenizer: Tokenizer, files: list[tuple[int, Path]], part: Part) -> Job:
    sizes = [status_of(path).st_size for _, path in files]
    work = dict(part.work(files, sizes))
    reads = list(work.values())
    # The part that has the beginning of a file hashes it.
    unread = {
        path
        for index, (_, path) in enumerate(files)
        if index not in work or ((span := work[index].span) is not None and span.start > 0)
    }

    def batches(recipe: Recipe, position: Position) -> Generator[TokenBatch, None, None]:
        return source_batches(data, tokenizer, reads, position, recipe)

    return Job(
        data,
        part.folder(Path(data.shards)),
        recipe=lambda known: Recipe.make(data, tokenizer, files, known, unread),
        batches=batches,
        sizes=lambda _: [sizes[i] if each.span is None else len(each.span) for i, each in work.items()],
        files=tuple(path if index in work else None for index, (_, path) in enumerate(files)),
        part=(part.number, part.count),
        exact=lambda sentence: _with_lines(sentence, reads),
    )


def merge(
    data: DataConfig,
    count: int,
    progress: Callable[[PrepareProgress], None] | None = None,
    report: Callable[[str], None] = print,
) -> Manifest:
    """Makes the folder data.shards of all its parts, to the last byte what `prepare` would write; then deletes these.

    An interrupted merge is resumed.

    Raises:
        UserError: a part is missing, unfinished, damaged or made of something else; or as `prepare`.
    """
    if not 1 <= count <= _MOST_PARTS:
        raise UserError(f"--merge {count} is no number of parts: give the one behind the / of --part")
    tokenizer = Tokenizer.load(data.tokenizer)
    files = files_of(data.sources, report)
    folder = Path(data.shards)
    parts = [Part(number, count) for number in range(1, count + 1)]
    try:
        with folder_lock(folder, doing=f"prepare --merge {count}"):
            manifest = finished(data, tokenizer, files, folder)
            if manifest is None:
                manifests = _manifests(folder, parts)
                recipe = _whole_recipe(data, tokenizer, files, manifests, parts)
                manifest = make_shards(_merge_job(data, recipe, files, manifests, parts), progress, report)
                tell_of_bad_records(manifest, report)
            for part in parts:
                shutil.rmtree(part.folder(folder), ignore_errors=True)
            with suppress(OSError):  # parts of another number, perhaps
                (folder / PARTS_NAME).rmdir()
            return manifest
    except OSError as error:
        raise UserError(f"the token shards cannot be written to {folder}: {error.strerror or error}") from None


def _manifests(folder: Path, parts: Sequence[Part]) -> list[Manifest]:
    missing = [part for part in parts if not (part.folder(folder) / MANIFEST_NAME).is_file()]
    if missing:
        named = first_of(missing, _PARTS_NAMED)
        raise UserError(
            f"{folder / PARTS_NAME} lacks {len(missing)} of {len(parts)} parts, or they are unfinished ({named}): make "
            f"them with --part {missing[0]}"
        )
    manifests = [Manifest.load(part.folder(folder)) for part in parts]
    for part, manifest in zip(parts, manifests, strict=True):
        facts = manifest.part
        if facts is None or (facts.number, facts.count) != (part.number, part.count):
            raise UserError(
                f"{part.folder(folder)} does not hold part {part}: delete it, and make it with --part {part}"
            )
    return manifests


def _whole_recipe(
    data: DataConfig,
    tokenizer: Tokenizer,
    files: list[tuple[int, Path]],
    manifests: Sequence[Manifest],
    parts: Sequence[Part],
) -> Recipe:
    """The recipe of the whole, after a check that all parts were made by it, of the same files."""
    first = manifests[0].recipe
    hashes: dict[int, str] = {}
    for manifest in manifests:
        for index, file in enumerate(manifest.recipe.source_files):
            if not file.sha256.startswith(UNREAD):
                hashes.setdefault(index, file.sha256)
    source_files = [
        replace(file, sha256=hashes.get(index, file.sha256)) for index, file in enumerate(first.source_files)
    ]
    known = replace(first, source_files=tuple(source_files))
    recipe = Recipe.make(data, tokenizer, files, known)
    for part, manifest in zip(parts, manifests, strict=True):
        theirs = [(file.path, file.size, file.mtime_ns) for file in manifest.recipe.source_files]
        ours = [(file.path, file.size, file.mtime_ns) for file in recipe.source_files]
        if len(theirs) == len(ours) and theirs != ours:
            (path, *_), _ = next(pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1])
            changed: list[str] = [f"{path} had another name, size or time of change then"]
        else:
            same_files = replace(manifest.recipe, source_files=known.source_files) if len(theirs) == len(ours) else None
            other = same_files or manifest.recipe
            changed = [*recipe.differences(other), *recipe.regrouped(other)]
        if changed:
            raise UserError(
                f"{part.folder(Path(data.shards))} was made of something else ({'; '.join(changed)}): delete it, and "
                f"make it again with --part {part}"
            )
    return recipe


def _merge_job(
    data: DataConfig,
    recipe: Recipe,
    files: list[tuple[int, Path]],
    manifests: Sequence[Manifest],
    parts: Sequence[Part],
) -> Job:
    for manifest in manifests:
        check_policy(data, Path(data.shards), manifest.bad_records)
    folders = [part.folder(Path(data.shards)) for part in parts]
    return Job(
        data,
        Path(data.shards),
        recipe=lambda _: recipe,
        batches=lambda _, position: merged_batches(folders, manifests, position),
        sizes=lambda _: [sum(manifest.splits[split].tokens for split in SPLITS) for manifest in manifests],
        files=(None,) * len(files),
        parts=len(parts),
    )


def _with_lines(sentence: str, work: Sequence[WorkFile]) -> str:
    """The sentence with lines that are counted from the beginning of their file: file:+1 becomes file:1000001."""
    for file in work:
        begins = f"{shown_path(file.path)}:+"
        if file.span is None or begins not in sentence:
            continue
        before = _lines_before(file.path, file.span.start)

        def absolute(found: re.Match[str], before: int = before) -> str:
            return f"{found[1]}{before + int(found[2])}"

        sentence = re.sub(f"({re.escape(begins[:-1])})\\+(\\d+)", absolute, sentence)
    return sentence


def _lines_before(path: Path, start: int) -> int:
    """The number of lines that begin before `start` > 0: the last of them ends there or later."""
    lines, left = 1, start - 1
    with path.open("rb") as file:
        while left and (block := file.read(min(left, BLOCK_BYTES))):
            lines += block.count(b"\n")
            left -= len(block)
    return lines

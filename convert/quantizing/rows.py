"""Chooses the rows of tokens that a quantisation is calibrated on, and others that its gate measures on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stellarbyte.errors import UserError
from stellarbyte.places import Place, place
from stellarbyte.tokenizer_file import works
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.config_file import run_config_from_dict
from stellarbyte_jax.data.corpus import documents
from stellarbyte_jax.data.manifest import MANIFEST_NAME, Manifest
from stellarbyte_jax.data.passages import PassageSplit
from stellarbyte_jax.data.token_shards import TokenShards, shard_cache
from stellarbyte_jax.data.tokenizer import Tokenizer

HELD_OUT_ROWS = 32

# Makes token ids of a text, special tokens inside it staying text.
Encode = Callable[[str], list[int]]

# Of text that has no validation split a tenth is held out, in passages of so many characters.
_PASSAGES = PassageSplit(chars=2048, below=(1 << 62) // 10)
# More text than this many times what is needed is not read.
_PLENTY = 50
# A shorter row says too little of a model.
_SHORTEST = 16


@dataclass(frozen=True)
class Rows:
    """Rows of token ids, int64 [N, T], from `source`; none of `held_out` is in the text of `calibration`."""

    calibration: np.ndarray
    held_out: np.ndarray
    source: str


@dataclass(frozen=True)
class Wanted:
    """How many rows are wanted, of how many tokens, and with which token before each; `seed` chooses among them."""

    samples: int
    length: int
    bos: int | None
    seed: int


def of_run(run_dir: Place, step: int | None, wanted: Wanted) -> Rows:
    """Rows of the run's own token shards: of the training split to calibrate, of the validation split to measure.

    Raises:
        UserError: the run has no token shards, such as an imported model; or they are gone, damaged or too short.
    """
    from stellarbyte_jax.checkpoints.checkpoint import load_metadata
    from stellarbyte_jax.training.own_shards import with_own_shards

    metadata, _ = load_metadata(run_dir, step)
    if "data" not in metadata.config:
        raise UserError(f"{run_dir} holds an imported model, which has no token shards: name text with --data")
    tokenizer = Tokenizer(metadata.tokenizer_files, str(run_dir))
    config = run_config_from_dict(metadata.config, str(run_dir))
    try:
        config, manifest = with_own_shards(config, metadata.data, run_dir, tokenizer, None)
    except UserError as error:
        raise UserError(str(error).replace("--data.shards", "--data")) from error
    return _of_splits(config.data, manifest, wanted)


def of_shards(folder: Place, tokenizer_sha256: str, wanted: Wanted) -> Rows:
    """Rows of a folder of token shards.

    Raises:
        UserError: they were made with another tokenizer, or are damaged or too short.
    """
    manifest = Manifest.load(folder)
    if manifest.recipe.tokenizer_sha256 != tokenizer_sha256:
        raise UserError(f"--data {folder} was made with another tokenizer than the model's: name text instead")
    return _of_splits(DataConfig(sources=(SourceConfig("text"),), tokenizer="t", shards=str(folder)), manifest, wanted)


def _of_splits(data: DataConfig, manifest: Manifest, wanted: Wanted) -> Rows:
    cache = shard_cache(data, manifest) if not isinstance(place(data.shards), Path) else None
    calibration, held_out = (
        Stream(f"the {split} split of {data.shards}", shards.tokens, _reader(shards))
        for split in ("train", "validation")
        for shards in [TokenShards(place(data.shards), split, manifest, cache)]
    )
    return _chosen(calibration, held_out, wanted, data.shards)


def _reader(shards: TokenShards) -> Callable[[int, int], np.ndarray]:
    def read(start: int, stop: int) -> np.ndarray:
        items = shards.read(start, stop)
        return items["token"] if items.dtype.names else items

    return read


def of_text(path: str, encode: Encode, wanted: Wanted, report: Callable[[str], None]) -> Rows:
    """Rows of any text that `prepare` reads.

    Raises:
        UserError: there is no such text, it is empty, or it is too short for a row.
    """
    ids: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    counts = [0, 0]
    enough = _PLENTY * max(wanted.samples, HELD_OUT_ROWS) * wanted.length
    before = [] if wanted.bos is None else [wanted.bos]
    with works("of the model"):
        for document in documents([SourceConfig(path)], report=report):
            for part, is_held_out in _PASSAGES.parts(document.text):
                ids[is_held_out].append(np.array([*before, *encode(part)], np.int64))
                counts[is_held_out] += len(ids[is_held_out][-1])
            if counts[0] >= enough:
                break
    calibration, held_out = (np.concatenate([np.empty(0, np.int64), *parts]) for parts in ids)
    if len(held_out) < min(wanted.length, len(calibration) // 10):  # by chance, as a text of few passages has few there
        cut = len(calibration) - max(len(calibration) // 10, min(wanted.length, len(calibration) // 2))
        calibration, held_out = calibration[:cut], np.concatenate([held_out, calibration[cut:]])
    streams = (_stream(f"--data {path}", calibration), _stream(f"what is held out of --data {path}", held_out))
    return _chosen(*streams, wanted, path)


def _stream(name: str, tokens: np.ndarray) -> "Stream":
    return Stream(name, len(tokens), lambda start, stop: tokens[start:stop])


@dataclass(frozen=True)
class Stream:
    """Tokens one after another, and how to read those from one place to another. name: what errors call them."""

    name: str
    tokens: int
    read: Callable[[int, int], np.ndarray] = field(repr=False)


def _chosen(calibration: Stream, held_out: Stream, wanted: Wanted, source: str) -> Rows:
    if calibration.tokens < wanted.length:
        raise UserError(
            f"{calibration.name} has {calibration.tokens} tokens, fewer than the {wanted.length} of one sample: name "
            "more text with --data, or shorten the samples with --sequence-length"
        )
    if held_out.tokens < _SHORTEST:
        raise UserError(
            f"{held_out.name} has {held_out.tokens} tokens, too few to measure on: name other text with --data"
        )
    picked = np.random.default_rng(wanted.seed).permutation(_count(calibration, wanted.length, wanted.bos))
    length = min(wanted.length, held_out.tokens)
    spread = np.linspace(0, _count(held_out, length, wanted.bos) - 1, HELD_OUT_ROWS).astype(np.int64)
    return Rows(
        _rows(calibration, np.sort(picked[: wanted.samples]), wanted.length, wanted.bos),
        _rows(held_out, np.unique(spread), length, wanted.bos),
        source,
    )


def _count(stream: Stream, length: int, bos: int | None) -> int:
    before = bos is not None
    return (stream.tokens - before) // (length - before)


def _rows(stream: Stream, numbers: Iterable[int], length: int, bos: int | None) -> np.ndarray:
    """Rows of `length` tokens by their numbers; bos takes the place of the last token of those that lack it."""
    each = length - (bos is not None)
    rows = [stream.read(number * each, number * each + length).astype(np.int64) for number in map(int, numbers)]
    return np.stack([row if bos in (None, row[0]) else np.concatenate([[bos], row[:-1]]) for row in rows])


def is_shards(path: Place) -> bool:
    """Whether a folder holds token shards."""
    return (path / MANIFEST_NAME).is_file()

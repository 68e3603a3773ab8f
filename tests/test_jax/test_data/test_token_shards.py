import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.array_file import BLOCK_BYTES, HEADER_BYTES
from stellarbyte_jax.data.tokenizer import Tokenizer
from test_jax.shards import open_shards

DOCUMENTS = ["one two", "床前", "three four five six seven", "8"]


@pytest.fixture
def data(make_shards: Callable[..., DataConfig]) -> DataConfig:
    return make_shards(DOCUMENTS)


def stream(tokenizer: Tokenizer) -> list[int]:
    return [i for text in DOCUMENTS for i in (0, *tokenizer.encode(text), 1)]


def test_any_slice_across_shards(data: DataConfig, tokenizer: Tokenizer) -> None:
    shards, expected = open_shards(data, "train"), stream(tokenizer)
    assert shards.tokens == len(expected) > 30
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            assert shards.read(start, stop).tolist() == expected[start:stop]
    assert shards.read(0, 5).dtype == np.uint16


def test_starts(data: DataConfig, tokenizer: Tokenizer) -> None:
    shards = open_shards(data, "train")
    lengths = [len(tokenizer.encode(text)) + 2 for text in DOCUMENTS]
    assert shards.starts.tolist() == [sum(lengths[:n]) for n in range(5)]
    assert (shards.documents, shards.bytes) == (4, sum(len(text.encode()) for text in DOCUMENTS))


def test_an_empty_split_opens(data: DataConfig) -> None:
    shards = open_shards(data, "validation")
    assert (shards.tokens, shards.documents, shards.starts.tolist()) == (0, 0, [0])
    assert shards.read(0, 0).shape == (0,)


@pytest.mark.parametrize(
    ("name", "damage", "complaint"),
    [
        ("manifest.json", None, "no finished token shards: make them with `stellarbyte prepare`"),
        ("manifest.json", b"{", "is not a manifest of this version"),
        ("manifest.json", b"{}", "is not a manifest of this version"),
        ("train-00001.npy", None, r"train-00001.npy is missing: delete"),
        ("train-documents.npy", None, r"train-documents.npy is missing: delete"),
        ("train-documents.npy", b"short", r"train-documents.npy has 5 bytes where the manifest says 168"),
        ("train-00001.npy", b"", r"train-00001.npy has 0 bytes where the manifest says 148"),
    ],
)
def test_a_damaged_folder_is_refused(data: DataConfig, name: str, damage: bytes | None, complaint: str) -> None:
    path = Path(data.shards) / name
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(UserError, match=complaint):
        open_shards(data, "train")


def read_all(data: DataConfig) -> None:
    for split in ("train", "validation"):
        shards = open_shards(data, split)
        shards.read(0, shards.tokens)
        shards.starts_within(0, shards.tokens)


def test_every_flipped_bit_is_found(data: DataConfig) -> None:
    files = sorted(Path(data.shards).iterdir())
    assert len(files) > 5
    unseen = []
    for path in files:
        content = path.read_bytes()
        for place in {*range(0, len(content), 1 + len(content) // 40), len(content) - 1}:
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            path.write_bytes(damaged)
            try:
                read_all(data)
                unseen.append((path.name, place))
            except UserError as error:
                assert "prepare it again" in str(error)  # noqa: PT017 - which of them is the question
        path.write_bytes(content)
    read_all(data)
    assert unseen == []


def test_only_what_is_read_is_checked_and_once(make_shards: Callable[..., DataConfig]) -> None:
    data = make_shards(["many words " * 40_000], tokens_per_shard=1 << 20)
    path = Path(data.shards) / "train-00000.npy"
    content = bytearray(path.read_bytes())
    assert len(content) > 2 * BLOCK_BYTES
    content[-1] ^= 1
    path.write_bytes(content)
    shards = open_shards(data, "train")
    assert shards.read(0, 1000).shape == (1000,)
    with pytest.raises(UserError, match="is damaged: bytes 524416 to 786560 are not all as they were written"):
        shards.read(shards.tokens - 1, shards.tokens)
    content[HEADER_BYTES] ^= 1
    path.write_bytes(content)
    assert shards.read(0, 1000).shape == (1000,), "it was right when it was first read"


def test_shards_that_shrink_under_a_reader_are_refused(data: DataConfig) -> None:
    shards = open_shards(data, "train")
    shards.read(0, 5)
    path = Path(data.shards) / "train-00000.npy"
    path.write_bytes(path.read_bytes()[:-15])
    with pytest.raises(UserError, match="was cut short after it was opened"):
        shards.read(0, 5)


def test_shards_of_an_earlier_version_open_with_a_warning(data: DataConfig, tokenizer: Tokenizer) -> None:
    path = Path(data.shards) / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    assert open_shards(data, "train").manifest.warning is None
    del manifest["checksums"], manifest["sha256"]
    path.write_text(json.dumps(manifest))
    shards = open_shards(data, "train")
    assert shards.read(0, shards.tokens).tolist() == stream(tokenizer)
    assert "prepared without checksums" in str(shards.manifest.warning)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m["recipe"].update(tokens_per_shard=0), "tokens_per_shard 0 must be at least 1"),
        (lambda m: m["recipe"].update(dtype="object"), "expected one of uint16, uint32"),
        (lambda m: m["recipe"].update(source_files=3), "does not say of what files"),
        (lambda m: m["recipe"]["source_files"].append({"path": "x"}), "describes no file"),
        (lambda m: m.update(recipe=[]), "does not say of what files"),
        (lambda m: m["splits"]["train"].update(tokens="9"), "splits.train.tokens is '9', expected an integer"),
        (lambda m: m["splits"]["train"].update(documents=-1), "must not be negative"),
        (lambda m: m["splits"].update(test=m["splits"]["train"]), "splits names"),
        (lambda m: m.update(splits=None), "splits"),
        (lambda m: m.update(checksums={"train-00000.npy": "zz"}), "has not the checksums of"),
        (lambda m: m.update(checksums={}), "has not the checksums of"),
        (lambda m: m.update(another=1), "another is not a field"),
    ],
)
def test_a_manifest_of_the_wrong_form_is_one_sentence(data: DataConfig, change: Any, complaint: str) -> None:
    path = Path(data.shards) / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["sha256"]
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=complaint):
        read_all(data)


def test_threads_may_read_together(data: DataConfig, tokenizer: Tokenizer) -> None:
    expected = stream(tokenizer)
    for _ in range(20):
        shards = open_shards(data, "train")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda start, shards=shards: shards.read(start, start + 9).tolist(), range(20)))
        assert found == [expected[start : start + 9] for start in range(20)]

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.data.tokenizer import Tokenizer

DOCUMENTS = ["one two", "床前", "three four five six seven", "8"]


@pytest.fixture
def data(make_shards: Callable[..., DataConfig]) -> DataConfig:
    return make_shards(DOCUMENTS)


def stream(tokenizer: Tokenizer) -> list[int]:
    return [i for text in DOCUMENTS for i in (0, *tokenizer.encode(text), 1)]


def test_any_slice_across_shards(data: DataConfig, tokenizer: Tokenizer) -> None:
    shards, expected = TokenShards.open(data.shards, "train"), stream(tokenizer)
    assert shards.tokens == len(expected) > 30
    for start in range(len(expected) + 1):
        for stop in range(start, len(expected) + 1):
            assert shards.read(start, stop).tolist() == expected[start:stop]
    assert shards.read(0, 5).dtype == np.uint16


def test_starts(data: DataConfig, tokenizer: Tokenizer) -> None:
    shards = TokenShards.open(data.shards, "train")
    lengths = [len(tokenizer.encode(text)) + 2 for text in DOCUMENTS]
    assert shards.starts.tolist() == [sum(lengths[:n]) for n in range(5)]
    assert (shards.documents, shards.bytes) == (4, sum(len(text.encode()) for text in DOCUMENTS))


def test_an_empty_split_opens(data: DataConfig) -> None:
    shards = TokenShards.open(data.shards, "validation")
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
        TokenShards.open(data.shards, "train")


def test_threads_may_read_together(data: DataConfig, tokenizer: Tokenizer) -> None:
    expected = stream(tokenizer)
    for _ in range(20):
        shards = TokenShards.open(data.shards, "train")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda start, shards=shards: shards.read(start, start + 9).tolist(), range(20)))
        assert found == [expected[start : start + 9] for start in range(20)]

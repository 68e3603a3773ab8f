import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stellarbyte.labels import IGNORED_LABEL
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.sample_packing import PackedSamples
from stellarbyte_jax.data.token_shards import TokenShards
from test_jax.shards import open_shards


@pytest.fixture(scope="module")
def shards(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    """Samples that all differ, in shards of 50 tokens."""
    folder = tmp_path_factory.mktemp("packing")
    generator = np.random.default_rng(0)
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        for n in range(40):
            turns = [
                {"role": role, "content": f"{n} {role[0] * int(generator.integers(1, 8))}"}
                for _ in range(int(generator.integers(1, 3)))
                for role in ("user", "assistant")
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    data = DataConfig(
        sources=(SourceConfig(str(folder / "chat.jsonl")),),
        tokenizer=str(tokenizer_folder),
        shards=str(folder / "shards"),
        sequence_length=64,
        validation_fraction=0.0,
        tokens_per_shard=50,
        kind="chat",
    )
    prepare(data, report=lambda _: None)
    return open_shards(data, "train")


def test_each_sample_is_in_one_row_whole_and_alone(shards: TokenShards) -> None:
    rows = PackedSamples(shards, 64)
    expected = [shards.read(int(a), int(b)) for a, b in pairwise(shards.starts)]
    found: list[np.ndarray] = []
    for index in range(len(rows)):
        row = rows[index]
        assert {name: (values.dtype, values.shape) for name, values in row.items()} == dict.fromkeys(
            ("input_ids", "labels", "position_ids", "segment_ids"), (np.int32, (64,))
        )
        used = int((row["segment_ids"] > 0).sum())
        assert np.array_equal(np.unique(row["segment_ids"][:used]), np.arange(1, row["segment_ids"].max() + 1))
        assert (np.diff(row["segment_ids"][:used]) >= 0).all()
        for segment in range(1, row["segment_ids"].max() + 1):
            inside = row["segment_ids"] == segment
            tokens, labels = row["input_ids"][inside], row["labels"][inside]
            assert np.array_equal(row["position_ids"][inside], np.arange(len(tokens)))
            trained = np.append(False, labels[:-1] != IGNORED_LABEL)
            assert np.array_equal(labels[:-1][trained[1:]], tokens[1:][trained[1:]])
            assert labels[-1] == IGNORED_LABEL
            found.append(np.rec.fromarrays([tokens, trained], dtype=shards.dtype))
        assert set(row["input_ids"][used:].tolist()) <= {2}
        assert set(row["labels"][used:].tolist()) <= {IGNORED_LABEL}
        assert not row["position_ids"][used:].any()
    assert sorted(sample.tobytes() for sample in found) == sorted(sample.tobytes() for sample in expected)
    assert len({sample.tobytes() for sample in expected}) == 40


def test_rows_beyond_the_last_are_refused(shards: TokenShards) -> None:
    rows = PackedSamples(shards, 64)
    for index in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows[index]


def test_a_padding_row_is_empty(shards: TokenShards) -> None:
    row = PackedSamples(shards, 64).padding_row()
    assert {name: set(values.tolist()) for name, values in row.items()} == {
        "input_ids": {2},
        "labels": {IGNORED_LABEL},
        "position_ids": {0},
        "segment_ids": {0},
    }

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.packing import PackedRows
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from test_jax.shards import open_shards

from .conftest import write_jsonl


def pack(folder: Path, tokenizer_folder: Path, texts: Sequence[str], length: int, tokens_per_shard: int) -> PackedRows:
    write_jsonl(folder / "corpus.jsonl", texts)
    data = DataConfig(
        sources=(SourceConfig(str(folder / "corpus.jsonl")),),
        tokenizer=str(tokenizer_folder),
        shards=str(folder / "shards"),
        validation_fraction=0.0,
        tokens_per_shard=tokens_per_shard,
    )
    prepare(data)
    return PackedRows(open_shards(data, "train"), length)


def expected_rows(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> list[dict[str, list[int]]]:
    """The definition, token by token."""
    stream = [(i, n) for n, text in enumerate(texts) for i in (0, *tokenizer.encode(text), 1)]
    rows = []
    for start in range(0, len(stream), length):
        row: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": [], "segment_ids": []}
        for at in range(start, start + length):
            token, document = stream[at] if at < len(stream) else (2, None)
            following, next_document = stream[at + 1] if at + 1 < len(stream) else (2, None)
            same = document is not None and document == next_document
            row["input_ids"].append(token)
            row["labels"].append(following if same else -100)
            if document is None:
                row["segment_ids"].append(0)
                row["position_ids"].append(0)
                continue
            first = at == start or stream[at - 1][1] != document
            row["position_ids"].append(0 if first else row["position_ids"][-1] + 1)
            row["segment_ids"].append(document - stream[start][1] + 1)
        rows.append(row)
    return rows


@given(
    texts=st.lists(st.text("ab 床", min_size=1, max_size=12), min_size=1, max_size=8),
    length=st.integers(2, 20),
    tokens_per_shard=st.sampled_from([3, 10, 40]),
)
@settings(max_examples=settings.default.max_examples // 4)
def test_rows_are_as_defined(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Tokenizer,
    tokenizer_folder: Path,
    texts: list[str],
    length: int,
    tokens_per_shard: int,
) -> None:
    rows = pack(tmp_path_factory.mktemp("pack"), tokenizer_folder, texts, length, tokens_per_shard)
    found = [{name: values.tolist() for name, values in rows[index].items()} for index in range(len(rows))]
    assert found == expected_rows(tokenizer, texts, length)


def test_a_row_spelt_out(tmp_path: Path, tokenizer: Tokenizer, tokenizer_folder: Path) -> None:
    [a], [b], [c] = (tokenizer.encode(letter) for letter in "ZYX")
    rows = pack(tmp_path, tokenizer_folder, ["Z", "YX"], 5, 100)
    first, second = rows[0], rows[1]
    assert first["input_ids"].tolist() == [0, a, 1, 0, b]
    assert first["labels"].tolist() == [a, 1, -100, b, c]
    assert first["segment_ids"].tolist() == [1, 1, 1, 2, 2]
    assert first["position_ids"].tolist() == [0, 1, 2, 0, 1]
    assert second["input_ids"].tolist() == [c, 1, 2, 2, 2]
    assert second["labels"].tolist() == [1, -100, -100, -100, -100]
    assert second["segment_ids"].tolist() == [1, 1, 0, 0, 0]
    assert second["position_ids"].tolist() == [0, 1, 0, 0, 0]
    assert len(rows) == 2


def test_types_shapes_and_bounds(tmp_path: Path, tokenizer_folder: Path) -> None:
    rows = pack(tmp_path, tokenizer_folder, ["some text"] * 9, 16, 7)
    for row in (rows[0], rows[len(rows) - 1], rows.padding_row()):
        assert {name: (values.dtype, values.shape) for name, values in row.items()} == dict.fromkeys(
            ("input_ids", "labels", "position_ids", "segment_ids"), (np.int32, (16,))
        )
    for index in (-1, len(rows)):
        with pytest.raises(IndexError):
            rows[index]


def test_padding_row_has_nothing_to_learn(tmp_path: Path, tokenizer_folder: Path) -> None:
    row = pack(tmp_path, tokenizer_folder, ["text"], 4, 100).padding_row()
    assert [set(values.tolist()) for values in row.values()] == [{2}, {-100}, {0}, {0}]
    arrays = list(row.values())
    assert not any(np.shares_memory(a, b) for a, b in pairwise(arrays))

import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.loader import TrainLoader
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.packing import PackedRows
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from test_jax.shards import manifest_of, open_shards, train_loader, validation_batches

from .conftest import write_jsonl


@pytest.fixture(scope="module")
def data(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Rows that all differ: each holds the numbers of its own documents."""
    folder = tmp_path_factory.mktemp("loader")
    write_jsonl(folder / "corpus.jsonl", [f"{n * 7919} is {n * n}" for n in range(60)])
    data = DataConfig(
        sources=(SourceConfig(str(folder / "corpus.jsonl")),),
        tokenizer=str(tokenizer_folder),
        shards=str(folder / "shards"),
        sequence_length=24,
        validation_fraction=0.2,
        tokens_per_shard=100,
    )
    prepare(data)
    return data


def keys(batch: dict[str, np.ndarray]) -> list[bytes]:
    return [row.tobytes() for row in batch["input_ids"]]


def all_rows(data: DataConfig, split: str) -> list[bytes]:
    rows = PackedRows(open_shards(data, split), data.sequence_length)
    return [rows[index]["input_ids"].tobytes() for index in range(len(rows))]


def equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> bool:
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def shares(batch_size: int, hosts: int) -> list[list[int]]:
    """Rows of each host, dealt out like cards."""
    return [list(range(host, batch_size, hosts)) for host in range(hosts)]


def test_batches_are_int32_of_the_local_size(data: DataConfig) -> None:
    batch = train_loader(data, 6, seed=0, local_rows=(2, 5)).batch(0)
    assert {name: (values.dtype, values.shape) for name, values in batch.items()} == dict.fromkeys(
        ("input_ids", "labels", "position_ids", "segment_ids"), (np.int32, (2, 24))
    )


@given(
    local_size=st.integers(1, 5),
    process_count=st.integers(1, 4),
    seed=st.integers(0, 2**31),
    resumes=st.lists(st.integers(1, 9), max_size=4),
)
@settings(max_examples=settings.default.max_examples // 4)
def test_every_row_once_an_epoch_across_resumes_and_host_counts(
    data: DataConfig, local_size: int, process_count: int, seed: int, resumes: list[int]
) -> None:
    """Law 7. Each resume goes on with another number of hosts."""
    batch_size = local_size * process_count
    rows = all_rows(data, "train")
    assert len(set(rows)) == len(rows) > 20
    steps = -(-3 * len(rows) // batch_size)
    borders = sorted({0, steps, *(step for step in resumes if step < steps)})
    seen: list[bytes] = []
    hosts = process_count
    for start, stop in pairwise(borders):
        loaders = [(rows, train_loader(data, batch_size, seed, rows)) for rows in shares(batch_size, hosts)]
        for step in range(start, stop):
            batch = {
                row: key for rows, loader in loaders for row, key in zip(rows, keys(loader.batch(step)), strict=True)
            }
            seen += [batch[row] for row in range(batch_size)]
        hosts = 1 if hosts > 1 else process_count
    for epoch in range(3):
        assert sorted(seen[epoch * len(rows) : (epoch + 1) * len(rows)]) == sorted(rows)


@settings(max_examples=settings.default.max_examples // 4)
@given(step=st.integers(0, 10**6), seed=st.integers(0, 2**31), rows=st.sets(st.integers(0, 11), min_size=1))
def test_a_host_reads_its_rows_of_the_batch(data: DataConfig, step: int, seed: int, rows: set[int]) -> None:
    """Hosts may well read the same rows."""
    whole = train_loader(data, 12, seed).batch(step)
    part = train_loader(data, 12, seed, sorted(rows)).batch(step)
    assert equal(part, {name: values[sorted(rows)] for name, values in whole.items()})


def test_epochs_and_seeds_differ_in_order(data: DataConfig) -> None:
    loader = train_loader(data, 1, seed=0)
    orders = [[keys(loader.batch(epoch * len(loader) + n))[0] for n in range(len(loader))] for epoch in range(3)]
    other = train_loader(data, 1, seed=1)
    orders.append([keys(other.batch(n))[0] for n in range(len(other))])
    orders.append(all_rows(data, "train"))
    assert len({tuple(order) for order in orders}) == 5


def test_a_batch_larger_than_the_epoch_wraps(data: DataConfig) -> None:
    count = len(train_loader(data, 1, seed=0))
    batch = train_loader(data, 2 * count, seed=0).batch(0)
    assert sorted(keys(batch)) == sorted(all_rows(data, "train") * 2)


@pytest.mark.parametrize("rows", [None, [2, 3]])
@pytest.mark.parametrize("start", [0, 5, 1000])
def test_reading_ahead_gives_the_same_batches(data: DataConfig, start: int, rows: list[int] | None) -> None:
    loader = train_loader(data, 4, 3, rows)
    batches = loader.batches(start)
    for step, batch in enumerate(islice(batches, 30), start):
        assert equal(batch, loader.batch(step))
    batches.close()


def test_closing_stops_the_threads(data: DataConfig) -> None:
    before = set(threading.enumerate())
    batches = train_loader(data, 4, 0).batches()
    next(batches)
    readers = set(threading.enumerate()) - before
    assert readers
    batches.close()
    for reader in readers:
        reader.join(timeout=30)
        assert not reader.is_alive()
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("process_count", [1, 2])
def test_validation_is_read_in_order_and_filled_up(data: DataConfig, process_count: int) -> None:
    halves = [[0, 1], [2, 3]] if process_count == 2 else [None]
    parts = [list(validation_batches(data, 4, None, rows)) for rows in halves]
    batches = [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]} for step in zip(*parts, strict=True)
    ]
    rows = all_rows(data, "validation")
    assert len(rows) % 4, "the last batch is to be filled up"
    found = [key for batch in batches for key in keys(batch)]
    assert found[: len(rows)] == rows
    assert len(found) == len(batches) * 4 == len(rows) + 4 - len(rows) % 4
    filling = {name: values[len(rows) % 4 :] for name, values in batches[-1].items()}
    assert {name: set(values.ravel().tolist()) for name, values in filling.items()} == {
        "input_ids": {2},
        "labels": {-100},
        "position_ids": {0},
        "segment_ids": {0},
    }


def test_validation_may_be_cut_short(data: DataConfig) -> None:
    assert len(list(validation_batches(data, 2, max_batches=2))) == 2
    assert len(list(validation_batches(data, 1000, max_batches=2))) == 1


def test_a_split_without_rows_is_refused(make_shards: Callable[..., DataConfig]) -> None:
    data = make_shards(["one", "two"])
    with pytest.raises(UserError, match=r"validation split of .* holds no text: raise data.validation_fraction"):
        next(validation_batches(data, 2))


def test_unprepared_data_is_refused(data: DataConfig, tmp_path: Path) -> None:
    missing = DataConfig(sources=data.sources, tokenizer=data.tokenizer, shards=str(tmp_path))
    with pytest.raises(UserError, match="make them with `stellarbyte prepare`"):
        train_loader(missing, 2, 0)


def test_without_weights_the_order_is_grains(data: DataConfig) -> None:
    """Old runs go on with the batches that they would have had."""
    rows = PackedRows(open_shards(data, "train"), data.sequence_length)
    shuffled = grain.MapDataset.source(rows).seed(5).shuffle().repeat(4)
    loader = train_loader(data, 3, seed=5)
    for step in range(len(rows)):
        expected = [shuffled[3 * step + row]["input_ids"] for row in range(3)]
        assert np.array_equal(loader.batch(step)["input_ids"], expected)


def weighted(data: DataConfig, *weights: float | None) -> DataConfig:
    sources = zip(data.sources, weights, strict=True)
    return replace(data, sources=tuple(replace(source, weight=weight) for source, weight in sources))


@pytest.fixture(scope="module")
def mixed(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Two sources: words of one letter, and numbers."""
    folder = tmp_path_factory.mktemp("mixed")
    write_jsonl(folder / "letters.jsonl", [f"{chr(97 + n)} " * 9 for n in range(10)])
    write_jsonl(folder / "numbers.jsonl", [f"{n * 7919}" for n in range(60)])
    data = DataConfig(
        sources=(SourceConfig(str(folder / "letters.jsonl")), SourceConfig(str(folder / "numbers.jsonl"))),
        tokenizer=str(tokenizer_folder),
        shards=str(folder / "shards"),
        sequence_length=16,
        validation_fraction=0.1,
        tokens_per_shard=100,
    )
    prepare(data)
    return data


@pytest.mark.parametrize("hosts", [1, 4])
def test_weights_decide_each_sources_share_and_every_row_comes_once_a_source_epoch(
    mixed: DataConfig, tokenizer: Tokenizer, hosts: int
) -> None:
    loaders = [
        (rows, train_loader(weighted(mixed, 0.75, 0.25), 8, seed=1, local_rows=rows)) for rows in shares(8, hosts)
    ]
    letters, numbers = loaders[0][1].order.rows
    steps = -(-3 * letters // 6)
    seen: list[list[bytes]] = [[], []]
    for step in range(steps):
        batch: dict[int, tuple[int, bytes]] = {}
        for rows, loader in loaders:
            read = loader.batch(step)
            batch |= dict(
                zip(rows, zip((s for s, _, _ in read.samples.values()), keys(read), strict=True), strict=True)
            )
        for _, (source, key) in sorted(batch.items()):
            seen[source].append(key)
    assert abs(len(seen[0]) - 0.75 * 8 * steps) < 1
    assert len(set(seen[0])) == letters and len(set(seen[1])) == min(numbers, len(seen[1]))
    epochs = [seen[0][n * letters : (n + 1) * letters] for n in range(3)]
    assert len({tuple(sorted(epoch)) for epoch in epochs}) == 1 and len({tuple(epoch) for epoch in epochs}) == 3
    for source, found in enumerate(seen):
        for key in found:
            text = tokenizer.decode([token for token in np.frombuffer(key, np.int32).tolist() if token > 2])
            assert any(character.isdigit() for character in text) == bool(source)


def test_the_ids_are_those_of_the_rows_that_were_read(mixed: DataConfig) -> None:
    data = weighted(mixed, 1.0, 2.0)
    batch = train_loader(data, 6, seed=3).batch(40)
    tokens = manifest_of(data).source_tokens
    assert tokens is not None
    begins = (0, tokens["train"][0])
    shards = open_shards(data, "train")
    for (source, _, row), read in zip(batch.samples.values(), batch["input_ids"], strict=True):
        start = begins[source] + 16 * row
        expected = shards.read(start, min(start + 16, begins[source] + tokens["train"][source]))
        assert np.array_equal(read[: len(expected)], expected)


def test_repeats_are_told(mixed: DataConfig, data: DataConfig) -> None:
    loader = train_loader(weighted(mixed, 0.6, 0.4), 8, seed=1)
    letters, numbers = loader.order.rows
    assert list(loader.repeats(100)) == [
        f"{mixed.sources[0].path}: {letters} rows, 60.0% of tokens, {60 / letters:.1f} epochs",
        f"{mixed.sources[1].path}: {numbers} rows, 40.0% of tokens, {40 / numbers:.1f} epochs",
    ]
    one = train_loader(data, 8, seed=1)
    assert list(one.repeats(len(one))) == []
    assert list(one.repeats(5 * len(one))) == [f"{len(one)} rows, 5.0 epochs"]


def test_weights_that_the_shards_cannot_serve_are_refused(mixed: DataConfig) -> None:
    data = weighted(mixed, 1.0, 2.0)
    manifest = manifest_of(data)
    with pytest.raises(UserError, match="prepared by an earlier version, which did not note where each source begins"):
        loader_of(data, replace(manifest, source_tokens=None))
    with pytest.raises(UserError, match=r"data.sources are 2 with weights, but .* was prepared from 1"):
        loader_of(data, replace(manifest, source_tokens={"train": (manifest.splits["train"].tokens,)}))
    with pytest.raises(UserError, match=r"data.sources.1.weight is 2.0, but .*numbers.jsonl has no text"):
        loader_of(data, replace(manifest, source_tokens={"train": (manifest.splits["train"].tokens, 0)}))
    with pytest.raises(UserError, match=r"numbers.jsonl has no weight, but others have: give all sources a weight"):
        weighted(mixed, 1.0, None)


def loader_of(data: DataConfig, manifest: Manifest) -> TrainLoader:
    return TrainLoader(data, manifest, 0)

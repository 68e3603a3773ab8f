import json
import lzma
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data import making
from stellarbyte_jax.data import prepare as prepare_module
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.prepare import PrepareProgress, prepare
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from test_jax.shards import open_shards

from .conftest import write_jsonl

pytestmark = pytest.mark.usefixtures("small_steps")


def configure(folder: Path, tokenizer_folder: Path, **settings: object) -> DataConfig:
    defaults: dict = {
        "sources": (SourceConfig(str(folder / "corpus")),),
        "tokenizer": str(tokenizer_folder),
        "shards": str(folder / "shards"),
        "validation_fraction": 0.3,
        "tokens_per_shard": 50,
    }
    return DataConfig(**(defaults | settings))


@pytest.fixture
def data(tmp_path: Path, tokenizer_folder: Path) -> DataConfig:
    """Three files, of 41 documents in all, one of them long; small batches and pieces."""
    (tmp_path / "corpus").mkdir()
    write_jsonl(tmp_path / "corpus" / "a.jsonl", [f"document {n} of the first file" for n in range(20)])
    (tmp_path / "corpus" / "b.txt").write_text("a long text of many words, line by line\n" * 40)
    write_jsonl(tmp_path / "corpus" / "c.jsonl", [f"the third file says {n} times {n}" for n in range(20)])
    return configure(tmp_path, tokenizer_folder)


def contents(data: DataConfig) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(data.shards).iterdir()}


def texts(data: DataConfig, tokenizer: Tokenizer, split: str) -> list[str]:
    """The documents of a split as they stand in the shards, checked for bos and eos."""
    shards = open_shards(data, split)
    found = []
    for start, stop in zip(shards.starts[:-1], shards.starts[1:], strict=True):
        tokens = shards.read(int(start), int(stop)).tolist()
        assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert min(tokens[1:-1]) > 2
        found.append(tokenizer.decode(tokens))
    return found


def test_every_document_is_in_one_split_in_order(data: DataConfig, tokenizer: Tokenizer) -> None:
    manifest = prepare(data)
    train, validation = (texts(data, tokenizer, split) for split in ("train", "validation"))
    folder = Path(data.sources[0].path)
    expected = [json.loads(line)["text"] for line in (folder / "a.jsonl").read_text().splitlines()]
    expected += [(folder / "b.txt").read_text()]
    expected += [json.loads(line)["text"] for line in (folder / "c.jsonl").read_text().splitlines()]
    assert sorted(train + validation) == sorted(expected)
    assert [text for text in expected if text in train] == train
    assert [text for text in expected if text in validation] == validation
    assert 0 < len(validation) < len(train)
    for split, found in (("train", train), ("validation", validation)):
        assert manifest.splits[split].documents == len(found)
        assert manifest.splits[split].bytes == sum(len(text.encode()) for text in found)
    assert sorted(contents(data)) == sorted(
        [f"train-{n:05d}.npy" for n in range(-(-manifest.splits["train"].tokens // 50))]
        + [f"validation-{n:05d}.npy" for n in range(-(-manifest.splits["validation"].tokens // 50))]
        + ["train-documents.npy", "validation-documents.npy", "manifest.json"]
    )
    assert Manifest.load(Path(data.shards)) == manifest


def test_shards_are_plain_arrays(data: DataConfig) -> None:
    manifest = prepare(data)
    first = np.load(Path(data.shards) / "train-00000.npy", allow_pickle=False)
    assert (first.dtype, first.shape) == (np.uint16, (50,))
    starts = np.load(Path(data.shards) / "train-documents.npy", allow_pickle=False)
    assert (starts.dtype, starts[0], starts[-1]) == (np.int64, 0, manifest.splits["train"].tokens)


def test_a_large_vocabulary_takes_wider_tokens(tmp_path: Path, tokenizer_folder: Path) -> None:
    tokenizer = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"!!{n}": len(vocabulary) + n for n in range(70_000)}
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_jsonl(tmp_path / "corpus.jsonl", ["one", "two"])
    source = (SourceConfig(str(tmp_path / "corpus.jsonl")),)
    data = configure(tmp_path, tmp_path / "large", sources=source, validation_fraction=0.0)
    assert prepare(data).recipe.dtype == "uint32"
    assert texts(data, Tokenizer.load(tmp_path / "large"), "train") == ["one", "two"]


class Stop(Exception):
    pass


def interrupt_late(progress: PrepareProgress) -> None:
    if progress.documents > 15:
        raise Stop


@given(stops=st.lists(st.integers(1, 16), min_size=1, max_size=3), tokens_per_shard=st.sampled_from([101, 300, 10_000]))
@settings(max_examples=settings.default.max_examples // 12)
def test_interrupted_and_resumed_is_the_same_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, stops: list[int], tokens_per_shard: int
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "corpus").mkdir()
    lines = [f'{{"text": "document {n} of the first file"}}' if n % 5 else f"bad {n}" for n in range(30)]
    (folder / "corpus" / "a.jsonl").write_text("\n".join(lines))
    (folder / "corpus" / "b.txt").write_text("a long text of many words, line by line\n" * 30)
    (folder / "corpus" / "c.jsonl").write_text("\n".join(lines[::-1]))
    data = configure(folder, tokenizer_folder, tokens_per_shard=tokens_per_shard, on_bad_record="skip")
    whole = replace(data, shards=str(folder / "whole"))
    summaries: list[str] = []
    prepare(whole, report=summaries.append)

    for stop in stops:
        calls = 0

        def interrupt(_: PrepareProgress, stop: int = stop) -> None:
            nonlocal calls
            calls += 1
            if calls == stop:
                raise Stop

        try:
            prepare(data, interrupt, report=summaries.append)
        except Stop:
            with pytest.raises(UserError, match="no finished token shards"):
                open_shards(data, "train")
    prepare(data, report=summaries.append)
    assert contents(data) == contents(whole)
    assert len(set(summaries)) == 1
    assert summaries[0].startswith("Skipped 12 bad records")


def test_killed_and_resumed_is_the_same_to_the_byte(data: DataConfig, tmp_path: Path) -> None:
    whole = replace(data, shards=str(tmp_path / "whole"))
    prepare(whole)
    code = f"""
import os, signal
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data import documents, making, prepare
from stellarbyte_jax.data import encoding_ahead as tokenized
tokenized.BATCH_CHARS, tokenized.PIECE_CHARS, documents.PIECE_CHARS, making._TOKENS_PER_CHECKPOINT = 200, 0, 150, 100
prepare.prepare({data!r}, lambda p: os.kill(os.getpid(), signal.SIGKILL) if p.documents > 15 else None)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert (Path(data.shards) / "position.json").exists()
    first: list[PrepareProgress] = []
    prepare(data, first.append)
    assert first[0].documents > 5  # it did not start from the beginning
    assert contents(data) == contents(whole)


@pytest.mark.parametrize("failing", ["append", "finish", "cut_back"])
def test_a_failure_while_writing_is_mended_by_resuming(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    data = replace(data, validation_fraction=1e-9)  # so that the last document moves
    whole = replace(data, shards=str(tmp_path / "whole"))
    prepare(whole)
    done = getattr(making.ShardWriter, failing)
    calls = 0

    def fail(self: object, *arguments: object) -> None:
        nonlocal calls
        calls += 1
        done(self, *arguments)
        if calls == {"append": 3, "finish": 1, "cut_back": 1}[failing]:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(making.ShardWriter, failing, fail)
        with pytest.raises(UserError, match=r"cannot be written to .*shards: No space left on device"):
            prepare(data)
    prepare(data)
    assert contents(data) == contents(whole)


def test_files_that_a_power_failure_cut_short_are_made_anew(data: DataConfig, tmp_path: Path) -> None:
    whole = replace(data, shards=str(tmp_path / "whole"))
    prepare(whole)

    with pytest.raises(Stop):
        prepare(data, interrupt_late)
    os.truncate(Path(data.shards) / "train-00000.npy", 150)
    told: list[str] = []
    prepare(data, report=told.append)
    assert "not all there: preparing from the start" in told[0]
    assert contents(data) == contents(whole)


def test_an_up_to_date_folder_is_left_alone(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = prepare(data)
    before = contents(data)

    def fail(*_: object) -> None:
        raise AssertionError("nothing is to be read")

    monkeypatch.setattr(prepare_module, "tokenized", fail)
    assert prepare(data, fail) == manifest
    os.utime(Path(data.sources[0].path) / "b.txt", (1, 1))  # touched, not changed
    prepare(data, fail)
    # Where the same files lie does not matter.
    Path(data.sources[0].path).rename(Path(data.shards).parent / "elsewhere")
    prepare(replace(data, sources=(SourceConfig(str(Path(data.shards).parent / "elsewhere")),)), fail)
    assert contents(data) == before


def _grow(data: DataConfig) -> DataConfig:
    with (Path(data.sources[0].path) / "b.txt").open("a") as file:
        file.write("more")
    return data


def _add(data: DataConfig) -> DataConfig:
    (Path(data.sources[0].path) / "d.txt").write_text("more")
    return data


def _tokenizer(data: DataConfig) -> DataConfig:
    train_tokenizer(["other"], 261, Path(data.shards).parent / "other")
    return replace(data, tokenizer=str(Path(data.shards).parent / "other"))


OTHERS: dict[str, tuple[Callable[[DataConfig], DataConfig], str]] = {
    "content": (_grow, r"b.txt has another content"),
    "files": (_add, r"the sources are 4 files, not 3"),
    "tokenizer": (_tokenizer, r"the tokenizer has 261 tokens and sha256 \w{12}…, not 320 and \w{12}…"),
    "fraction": (lambda data: replace(data, validation_fraction=0.5), r"validation_fraction is 0.5, not 0.3"),
    "shard size": (lambda data: replace(data, tokens_per_shard=60), r"tokens_per_shard is 60, not 50"),
    "template": (
        lambda data: replace(data, sources=(replace(data.sources[0], template="{text}!"),)),
        r"template of .*a.jsonl is '{text}!', not None",
    ),
    "fields": (
        lambda data: replace(data, sources=(replace(data.sources[0], fields=("text", "text")),)),
        r"fields of .*a.jsonl is \['text', 'text'\], not \['text'\]",
    ),
}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_made_of_something_else_is_refused(data: DataConfig, name: str, finished: bool) -> None:
    if finished:
        prepare(data)
    else:
        with pytest.raises(Stop):
            prepare(data, interrupt_late)
    change, complaint = OTHERS[name]
    other = change(data)
    before = contents(data)
    with pytest.raises(UserError, match=complaint) as caught:
        prepare(other)
    assert "set data.shards to another folder, or delete this one" in str(caught.value)
    assert contents(data) == before


@pytest.mark.parametrize("name", OTHERS)
def test_a_folder_that_is_just_begun_may_become_something_else(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(making, "_TOKENS_PER_CHECKPOINT", 10_000)

    def interrupt(_: PrepareProgress) -> None:
        raise Stop

    with pytest.raises(Stop):
        prepare(data, interrupt)
    other = OTHERS[name][0](data)
    prepare(other)
    whole = replace(other, shards=str(tmp_path / "whole"))
    prepare(whole)
    assert contents(other) == contents(whole)


def test_a_mended_source_is_read_again(data: DataConfig) -> None:
    first = Path(data.sources[0].path) / "a.jsonl"
    whole = first.read_bytes()
    first.write_bytes(b"[]\n" + whole)
    with pytest.raises(UserError, match=r"a.jsonl:1 is not a JSON object"):
        prepare(data)
    first.write_bytes(whole)
    assert sum(split.documents for split in prepare(data).splits.values()) == 41


def test_failing_at_a_bad_record_then_skipping_goes_on(data: DataConfig) -> None:
    folder = Path(data.sources[0].path)
    (folder / "c.jsonl").write_text((folder / "c.jsonl").read_text() + "[]\n")
    with pytest.raises(UserError, match=r"c.jsonl:21 is not a JSON object but a list"):
        prepare(data)
    told: list[str] = []
    manifest = prepare(replace(data, on_bad_record="skip"), report=told.append)
    assert manifest.bad_record_count == 1
    assert told == [f"Skipped 1 bad record: {folder}/c.jsonl:21 is not a JSON object but a list"]
    with pytest.raises(UserError, match="left records out"):
        prepare(data)


def test_records_without_text_are_counted(data: DataConfig) -> None:
    folder = Path(data.sources[0].path)
    (folder / "d.jsonl").write_text('{"text": ""}\n{"text": "some"}\n{"text": ""}\n')
    told: list[str] = []
    assert prepare(data, report=told.append).empty_records == 2
    assert told == ["2 records hold no text and were left out"]
    assert prepare(data).empty_records == 2


def test_a_missing_text_is_no_word(data: DataConfig, tokenizer: Tokenizer) -> None:
    folder = Path(data.sources[0].path)
    table = pa.table({"text": pa.array([float("nan"), None]), "n": ["a", "b"]})
    parquet.write_table(table, folder / "d.parquet")
    (folder / "e.json").write_text('[{"text": NaN}, {"text": null}, {"text": "a text"}]')
    (folder / "f.ndjson.xz").write_bytes(lzma.compress(b'{"text": NaN}\n{"text": "another"}'))
    with pytest.raises(UserError, match=r"d.parquet:1 has null in the field 'text', not text"):
        prepare(data)
    manifest = prepare(replace(data, on_bad_record="skip"))
    assert manifest.bad_record_count == 5
    found = texts(data, tokenizer, "train") + texts(data, tokenizer, "validation")
    assert {"a text", "another"} <= set(found)
    assert not {"nan", "NaN", "None", "null"} & set(found)


def test_progress_ends_at_the_whole(data: DataConfig) -> None:
    seen: list[PrepareProgress] = []
    manifest = prepare(data, seen.append)
    assert len(seen) > 5
    assert all(a.bytes_done <= b.bytes_done and a.tokens <= b.tokens for a, b in pairwise(seen))
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert seen[-1].tokens == sum(split.tokens for split in manifest.splits.values())


@given(count=st.integers(1, 12), fraction=st.sampled_from([0.0, 1e-9, 0.5, 0.999999]))
@settings(max_examples=settings.default.max_examples // 8)
def test_small_corpora_have_both_splits(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path, count: int, fraction: float
) -> None:
    folder = tmp_path_factory.mktemp("split")
    write_jsonl(folder / "corpus.jsonl", [f"document {n}" for n in range(count)])
    source = (SourceConfig(str(folder / "corpus.jsonl")),)
    manifest = prepare(configure(folder, tokenizer_folder, sources=source, validation_fraction=fraction))
    train, validation = manifest.splits["train"], manifest.splits["validation"]
    assert train.documents + validation.documents == count
    assert train.bytes + validation.bytes == sum(len(f"document {n}") for n in range(count))
    assert train.documents >= 1
    assert (validation.documents >= 1) == (fraction > 0 and count >= 2)
    for split in ("train", "validation"):
        assert len(TokenShards(folder / "shards", split, manifest).starts) == manifest.splits[split].documents + 1


def test_the_split_depends_on_the_text_alone(data: DataConfig, tokenizer: Tokenizer) -> None:
    prepare(data)
    validation = texts(data, tokenizer, "validation")
    folder = Path(data.sources[0].path)
    lines = (folder / "a.jsonl").read_text().splitlines() + (folder / "c.jsonl").read_text().splitlines()
    (folder / "a.jsonl").write_text("\n".join(lines[::-1]))
    (folder / "c.jsonl").write_text("\n".join(lines[:5]))  # the same again: on the same side
    other = replace(data, shards=data.shards + "-2")
    prepare(other)
    assert set(texts(other, tokenizer, "validation")) == set(validation)


@pytest.mark.parametrize("content", ["", '{"text": ""}\n', "\n"])
def test_an_empty_corpus_is_refused(tmp_path: Path, tokenizer_folder: Path, content: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"data.sources .*corpus.jsonl hold no text"):
        prepare(configure(tmp_path, tokenizer_folder, sources=(SourceConfig(str(tmp_path / "corpus.jsonl")),)))


def test_a_missing_source_or_tokenizer_is_refused(data: DataConfig) -> None:
    with pytest.raises(UserError, match="nowhere does not exist"):
        prepare(replace(data, sources=(SourceConfig("nowhere"),)))
    with pytest.raises(UserError, match=r"nowhere has no tokenizer.json"):
        prepare(replace(data, tokenizer="nowhere"))
    assert not Path(data.shards).exists()


def test_a_second_process_is_kept_out(data: DataConfig) -> None:
    def again(_: PrepareProgress) -> None:
        prepare(data)

    with pytest.raises(UserError, match=rf"process {os.getpid()} .*\(prepare since"):
        prepare(data, again)
    prepare(data)
    assert not list(Path(data.shards).parent.glob("**/*lock"))


@pytest.mark.parametrize("fraction", [0.0, 1e-9, 0.3, 0.999999])
def test_the_manifest_says_where_each_source_begins(data: DataConfig, tokenizer: Tokenizer, fraction: float) -> None:
    """Also if the last document has moved to the split that was empty, and after an interruption."""
    folder = Path(data.sources[0].path)
    sources = tuple(SourceConfig(str(folder / name)) for name in ("c.jsonl", "a.jsonl", "b.txt"))
    data = replace(data, sources=sources, validation_fraction=fraction)
    with pytest.raises(Stop):
        prepare(data, interrupt_late)
    manifest = prepare(data)
    assert manifest.recipe.source_file_counts == (1, 1, 1) and manifest.source_tokens is not None
    for split, counts in manifest.source_tokens.items():
        starts, begin = open_shards(data, split).starts, 0
        found = texts(data, tokenizer, split)
        assert len(counts) == 3 and sum(counts) == manifest.splits[split].tokens
        for marker, count in zip(("third", "first", "long"), counts, strict=True):
            of_source = found[slice(*np.searchsorted(starts, [begin, begin + count]))]
            assert bool(of_source) == bool(count) and all(marker in text for text in of_source)
            begin += count


def test_files_may_be_regrouped_only_without_weights(data: DataConfig) -> None:
    prepare(data)
    folder = Path(data.sources[0].path)
    names = ("a.jsonl", "b.txt", "c.jsonl")
    regrouped = replace(data, sources=tuple(SourceConfig(str(folder / name)) for name in names))
    prepare(regrouped)
    weighted = replace(regrouped, sources=tuple(replace(source, weight=1.0) for source in regrouped.sources))
    with pytest.raises(UserError, match="the sources have 1, 1, 1 files, not 3"):
        prepare(weighted)

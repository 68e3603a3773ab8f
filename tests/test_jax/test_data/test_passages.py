import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data import documents, making
from stellarbyte_jax.data import encoding_ahead as tokenized
from stellarbyte_jax.data.manifest import MANIFEST_NAME, Manifest
from stellarbyte_jax.data.passages import FEW_DOCUMENTS, PassageSplit
from stellarbyte_jax.data.prepare import PrepareProgress, prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from test_jax.shards import open_shards


def book(name: str, lines: int = 300) -> str:
    return "".join(f"Line {n} of {name}: what it says is its own, {n * n}.\n" for n in range(lines))


@pytest.fixture
def configure(tmp_path: Path, tokenizer_folder: Path) -> Callable[..., DataConfig]:
    def make(texts: list[str], fraction: float = 0.1) -> DataConfig:
        (tmp_path / "corpus").mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (tmp_path / "corpus" / f"{number:02}.txt").write_text(text)
        return DataConfig(
            (SourceConfig(str(tmp_path / "corpus")),),
            str(tokenizer_folder),
            str(tmp_path / "shards"),
            validation_fraction=fraction,
        )

    return make


def texts(data: DataConfig, tokenizer: Tokenizer, split: str) -> list[str]:
    shards = open_shards(data, split)
    found = []
    for start, stop in zip(shards.starts[:-1], shards.starts[1:], strict=True):
        tokens = shards.read(int(start), int(stop)).tolist()
        assert (tokens[0], tokens[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        found.append(tokenizer.decode(tokens))
    return found


@pytest.mark.parametrize("count", [1, 2, FEW_DOCUMENTS - 1])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5])
def test_few_documents_are_split_by_passages(
    configure: Callable[..., DataConfig], tokenizer: Tokenizer, count: int, fraction: float
) -> None:
    books = [book(f"book {n}") for n in range(count)]
    data = configure(books, fraction)
    manifest = prepare(data)
    train, validation = (texts(data, tokenizer, split) for split in ("train", "validation"))
    for split, parts in (("train", train), ("validation", validation)):
        assert manifest.splits[split].documents == len(parts) > 0
        assert manifest.splits[split].bytes == sum(len(part.encode()) for part in parts)
    # Every character is in one split, in order.
    whole = "".join(books)
    assert sum(map(len, train + validation)) == len(whole)
    for parts in (train, validation):
        at = 0
        for part in parts:
            at = whole.index(part, at) + len(part)
    passages = manifest.recipe.passages
    assert passages is not None
    share = manifest.splits["validation"].bytes / len(whole.encode())
    assert abs(share - fraction) < 2.5 * passages.chars / len(whole) + 0.05 * fraction


def test_many_documents_are_split_whole(configure: Callable[..., DataConfig]) -> None:
    data = configure([book(f"book {n}", 20) for n in range(FEW_DOCUMENTS)])
    assert prepare(data).recipe.passages is None


def test_a_text_too_short_for_passages_and_one_without_validation(configure: Callable[..., DataConfig]) -> None:
    manifest = prepare(configure(["a few words\n"]))
    assert manifest.recipe.passages is None
    assert (manifest.splits["train"].documents, manifest.splits["validation"].documents) == (1, 0)
    data = configure([book("book")], 0.0)
    assert prepare(replace(data, shards=data.shards + "2")).recipe.passages is None


def test_equal_passages_stay_together(configure: Callable[..., DataConfig], tokenizer: Tokenizer) -> None:
    data = configure(["x" * 5000 + "\n"])  # all but the last are equal: nothing would be left to train on
    manifest = prepare(data)
    assert manifest.splits["train"].documents > 0
    assert "".join(texts(data, tokenizer, "train") + texts(data, tokenizer, "validation")).count("x") == 5000


def test_interrupted_and_resumed_is_the_same(
    configure: Callable[..., DataConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenized, "BATCH_CHARS", 200)
    monkeypatch.setattr(tokenized, "PIECE_CHARS", 0)
    monkeypatch.setattr(documents, "PIECE_CHARS", 1000)
    monkeypatch.setattr(making, "_TOKENS_PER_CHECKPOINT", 100)
    data = configure([book("book")])
    whole = replace(data, shards=data.shards + "-whole")
    prepare(whole)
    seen = 0

    class Stop(Exception):
        pass

    def interrupt(_: PrepareProgress) -> None:
        nonlocal seen
        seen += 1
        if seen == 5:
            raise Stop

    with pytest.raises(Stop):
        prepare(data, interrupt)
    prepare(data)
    assert Manifest.load(Path(data.shards)) == Manifest.load(Path(whole.shards))
    for path in Path(whole.shards).glob("*.npy"):
        assert (Path(data.shards) / path.name).read_bytes() == path.read_bytes()


def test_shards_of_whole_documents_are_known(configure: Callable[..., DataConfig]) -> None:
    data = configure([book("book")])
    prepare(data)
    path = Path(data.shards) / MANIFEST_NAME
    manifest = json.loads(path.read_text())
    del manifest["recipe"]["passages"], manifest["sha256"]  # as an earlier version wrote it
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="the validation split is of passages, not whole documents"):
        prepare(data)


def test_a_source_that_changes_while_it_is_read_is_refused(configure: Callable[..., DataConfig]) -> None:
    data = configure([book("book")])

    def change(_: PrepareProgress) -> None:
        with (Path(data.sources[0].path) / "00.txt").open("a") as file:
            file.write("more\n")

    with pytest.raises(UserError, match=r"00.txt was changed while it was read: delete .*shards and prepare again"):
        prepare(data, change)


@given(
    words=st.lists(st.sampled_from(["one ", "two\n", "三。", "4", "\n\n"]), max_size=200), below=st.integers(0, 2**62)
)
def test_parts_are_the_text(words: list[str], below: int) -> None:
    text = "".join(words)
    parts = list(PassageSplit(20, below).parts(text))
    assert "".join(part for part, _ in parts) == text
    assert all(a != b for (_, a), (_, b) in pairwise(parts))

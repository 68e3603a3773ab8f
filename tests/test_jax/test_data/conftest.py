"""A small tokenizer, trained once, and a way to make token shards of given documents."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data import documents, encoding_ahead, making
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer

TEXTS = [
    "def add(first, second):\n        return first + second  # the sum of 12345 and 678\n" * 4,
    "It's what they've said: we'll see.\r\n\r\n  The end, the end of the story.\n" * 4,
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。使用Python代码。" * 4,  # noqa: RUF001 - a full-width comma is meant
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return train_tokenizer(TEXTS, 320, folder / "tokenizer", ["<|TOOL|>"])


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tokenizer"
    Tokenizer.save_files(tokenizer.files, folder)
    return folder


@pytest.fixture
def make_shards(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DataConfig]:
    """Prepare these documents; settings are DataConfig's."""

    def make(documents: Sequence[str], **settings: object) -> DataConfig:
        folder = tmp_path_factory.mktemp("data")
        write_jsonl(folder / "corpus.jsonl", documents)
        defaults: dict = {
            "sources": (SourceConfig(str(folder / "corpus.jsonl")),),
            "tokenizer": str(tokenizer_folder),
            "shards": str(folder / "shards"),
            "sequence_length": 8,
            "validation_fraction": 0.0,
            "tokens_per_shard": 10,
        }
        data = DataConfig(**(defaults | settings))
        prepare(data)
        return data

    return make


def write_jsonl(path: Path, documents: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), "utf-8")


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has `prepare` work in small batches and pieces, and save its position often."""
    monkeypatch.setattr(encoding_ahead, "BATCH_CHARS", 200)
    monkeypatch.setattr(encoding_ahead, "PIECE_CHARS", 0)
    monkeypatch.setattr(documents, "PIECE_CHARS", 150)
    monkeypatch.setattr(making, "_TOKENS_PER_CHECKPOINT", 100)

"""A model's folder to prune, and a text to measure importance on."""

import json
from pathlib import Path

import pytest

from ..exported import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("folder") / "hf", max_position_embeddings=32)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"def star_{n}(x): return x ** {n}"}) + "\n" for n in range(60)))
    return path

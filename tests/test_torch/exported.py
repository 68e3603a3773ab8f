"""An exported folder, tokenizer included, that the tests of generation share."""

from pathlib import Path
from typing import Any

from stellarbyte_jax.data.tokenizer_training import train_tokenizer

from .tiny import tiny_model

CORPUS = ["The quick brown fox jumps over the lazy dog. 春眠不觉晓、处处闻啼鸟。 “Ça va?” naïve café 🚀 "] * 20


def export(folder: Path, **changes: Any) -> Path:
    train_tokenizer(CORPUS, 300, folder)
    tiny_model(**{"vocab_size": 320, **changes}).save_pretrained(folder)
    return folder

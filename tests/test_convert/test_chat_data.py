"""The same conversations are the same samples on both sides."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.token_shards import TokenShards
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_torch.data import config as torch_config
from stellarbyte_torch.data import samples as torch_data
from test_convert.conftest import TEXT


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat_tokenizer")
    train_tokenizer([TEXT] * 20, 320, folder, ["<|im_start|>", "<|im_end|>"], report=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("on_too_long", ["truncate", "drop", "split"])
def test_prepared_samples_are_those_of_the_torch_side(
    folder: Path, theirs: PreTrainedTokenizerBase, tmp_path: Path, on_too_long: Any
) -> None:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"star {n}"},
                {"role": "assistant", "content": "byte " * (n % 9 + 1)},
            ]
        }
        for n in range(60)
    ]
    lines += [{"prompt": "the star " * 20, "completion": "no room"}, {"text": "a plain text"}, {"question": "bad"}]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(
        sources=(SourceConfig(str(path)),),
        tokenizer=str(folder),
        shards=str(tmp_path / "shards"),
        sequence_length=16,
        validation_fraction=0.0,
        on_bad_record="skip",
        on_too_long=on_too_long,
        kind="chat",
    )
    manifest = prepare(data, report=lambda _: None)
    shards = TokenShards(Path(data.shards), "train", manifest)
    ours = [shards.read(int(start), int(stop)) for start, stop in pairwise(shards.starts)]

    config = torch_config.DataConfig(
        sources=(torch_config.SourceConfig(str(path)),),
        sequence_length=16,
        validation_fraction=0.0,
        on_bad_record="skip",
        on_too_long=on_too_long,
    )
    expected = torch_data.read_samples(config, theirs)
    assert len(ours) == len(expected.train)
    for sample, other in zip(ours, expected.train, strict=True):
        assert np.array_equal(sample["token"], other.input_ids)
        assert np.array_equal(sample["trained"], other.trained)
    assert manifest.samples is not None
    for name in ("trained_tokens", "too_long", "cut_tokens", "untrained"):
        assert getattr(manifest.samples, name) == getattr(expected, name), name
    assert manifest.samples.too_long > 5
    assert (manifest.bad_record_count, expected.bad_records) == (1, 1)

"""What a folder of token shards says that it was made by is refused where no version of ours would say so."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.recipe import Recipe


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, None),
        ({"format_version": 99}, "format_version is 99, and this version reads 1"),
        ({"bos_token_id": -1}, "bos_token_id -1 must be at least 0"),
        ({"eos_token_id": 10**6}, "eos_token_id 1000000 must be at most"),
        ({"vocab_size": 10**9}, "vocab_size 1000000000 must be at most 65536"),
        ({"vocab_size": 0}, "vocab_size 0 must be at least 1"),
        ({"tokens_per_shard": 10**12}, "tokens_per_shard 1000000000000 must be at most"),
        ({"dtype": "object"}, "dtype is 'object', expected one of uint16, uint32"),
        ({"source_files": 3}, "does not say of what files"),
    ],
)
def test_a_recipe_that_no_version_has_written(
    small_data: DataConfig, fields: dict[str, Any], complaint: str | None
) -> None:
    recipe = Manifest.load(Path(small_data.shards)).recipe
    content = json.loads(json.dumps(asdict(recipe))) | fields
    if complaint is None:
        assert Recipe.from_dict(content, "recipe") == recipe
        return
    with pytest.raises(UserError, match=complaint):
        Recipe.from_dict(content, "recipe")

"""Data is the same wherever it lies, and another as soon as a token is."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.prepare import prepare

TEXTS = ["one two", "three", "four five"]


def identity(folder: str | Path) -> DataIdentity:
    return DataIdentity.of(Manifest.load(Path(folder)))


def test_it_does_not_depend_on_places_and_times(make_shards: Callable[..., DataConfig], tmp_path: Path) -> None:
    data = make_shards(TEXTS)
    before = identity(data.shards)
    shutil.copytree(data.shards, tmp_path / "copied")
    assert identity(tmp_path / "copied") == before
    shutil.copy(data.sources[0].path, tmp_path / "moved.jsonl")
    os.utime(tmp_path / "moved.jsonl", (1, 1))
    moved = (SourceConfig(str(tmp_path / "moved.jsonl")),)
    prepare(dataclasses.replace(data, sources=moved, shards=str(tmp_path / "again")))
    assert identity(tmp_path / "again") == before
    assert identity(tmp_path / "again").sha256 == before.sha256


def test_another_text_or_setting_is_told(make_shards: Callable[..., DataConfig]) -> None:
    before = identity(make_shards(TEXTS).shards)
    assert before.differences(before) is None
    other = identity(make_shards(["one twö", *TEXTS[1:]]).shards)
    assert "the sources have other content or fields" in str(other.differences(before))
    split = identity(make_shards(TEXTS, validation_fraction=0.5).shards)
    assert str(split.differences(before)).startswith("validation_fraction is 0.5, was 0.0; ")


def test_shards_without_checksums_are_known_by_their_recipe(make_shards: Callable[..., DataConfig]) -> None:
    data = make_shards(TEXTS)
    before, path = identity(data.shards), Path(data.shards) / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    del manifest["checksums"], manifest["sha256"]
    path.write_text(json.dumps(manifest))
    old = identity(data.shards)
    assert old.differences(before) is None and before.differences(old) is None
    assert old.differences(identity(make_shards(["another"]).shards)) is not None


def test_the_same_recipe_with_other_tokens_is_another(make_shards: Callable[..., DataConfig]) -> None:
    before = identity(make_shards(TEXTS).shards)
    other = dataclasses.replace(before, checksums_sha256="0" * 64)
    assert other.differences(before) == "the tokens are others"

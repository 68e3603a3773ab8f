"""A config may not say something else of its data than the token shards that it names."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.config import DataConfig, SourceConfig
from stellarbyte_jax.data.agreement import check_described
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.recipe import Recipe

TEXTS = ["one two", "three", "four five"]


@pytest.fixture
def data(make_shards: Callable[..., DataConfig]) -> DataConfig:
    return make_shards(TEXTS)


def recipe(data: DataConfig) -> Recipe:
    return Manifest.load(Path(data.shards)).recipe


def with_source(data: DataConfig, path: Path, **fields: object) -> DataConfig:
    return dataclasses.replace(data, sources=(SourceConfig(str(path), **fields),))  # type: ignore[arg-type]


def test_what_was_prepared_is_what_is_described(data: DataConfig) -> None:
    check_described(data, recipe(data), with_sources=True)


def test_sources_that_were_moved_or_are_not_here_agree(data: DataConfig, tmp_path: Path) -> None:
    source = Path(data.sources[0].path)
    shutil.copy(source, tmp_path / "moved.jsonl")
    check_described(with_source(data, tmp_path / "moved.jsonl"), recipe(data), with_sources=True)
    source.unlink()
    check_described(data, recipe(data), with_sources=True)
    check_described(with_source(data, tmp_path / "nowhere"), recipe(data), with_sources=True)


def test_sources_of_other_content_are_refused(data: DataConfig, tmp_path: Path) -> None:
    content = Path(data.sources[0].path).read_text()
    (tmp_path / "longer.jsonl").write_text(content + content)
    (tmp_path / "alike.jsonl").write_text(content.replace("one", "two"))
    for name in ("longer", "alike"):
        other = with_source(data, tmp_path / f"{name}.jsonl")
        with pytest.raises(
            UserError, match=rf"data\.sources has .*{name}\.jsonl, but data\.shards .* of other content"
        ):
            check_described(other, recipe(data), with_sources=True)
        check_described(other, recipe(data), with_sources=False)
    two = dataclasses.replace(data, sources=(*data.sources, SourceConfig(str(tmp_path / "longer.jsonl"))))
    with pytest.raises(UserError, match=r"are 2 files, but data\.shards .* was prepared from 1"):
        check_described(two, recipe(data), with_sources=True)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            {"validation_fraction": 0.5},
            r"data\.validation_fraction is 0\.5, but .* was prepared with 0\.0: set it to 0\.0",
        ),
        ({"tokens_per_shard": 11}, r"data\.tokens_per_shard is 11, but .* was prepared with 10: set it to 10"),
        ({"fields": ("title", "text")}, r"fields and templates \[title, text\], but .* was prepared with \[text\]"),
        ({"template": "{text}!"}, r"fields and templates \[text\] '\{text\}!', but .* was prepared with \[text\]"),
    ],
)
def test_what_the_shards_were_not_made_with_is_refused(data: DataConfig, change: dict, complaint: str) -> None:
    other = (
        with_source(data, Path(data.sources[0].path), **change)
        if change.keys() & {"fields", "template"}
        else dataclasses.replace(data, **change)
    )
    for with_sources in (True, False):
        with pytest.raises(UserError, match=complaint):
            check_described(other, recipe(data), with_sources=with_sources)

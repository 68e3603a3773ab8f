"""A run finds its own data again wherever it lies, and takes no other for it."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, load_metadata, load_params, save_imported
from stellarbyte_jax.config import DataConfig, RunConfig, SourceConfig
from stellarbyte_jax.config_file import load_run_config, to_dict
from stellarbyte_jax.data.identity import DataIdentity
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.training.evaluation import load_trained_run
from stellarbyte_jax.training.start import check_start
from test_jax.shards import manifest_of


@pytest.fixture
def other_data(small_data: DataConfig, corpus: Path, tmp_path: Path) -> DataConfig:
    """Prepared from another text with the same tokenizer."""
    lines = corpus.read_text(encoding="utf-8").splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join([*lines[1:], lines[0].replace("a", "b")]), encoding="utf-8")
    sources = (SourceConfig(str(tmp_path / "other.jsonl")),)
    data = dataclasses.replace(small_data, sources=sources, shards=str(tmp_path / "other"))
    prepare(data, report=lambda _: None)
    return data


@pytest.fixture
def home(finished_run: Path, small_data: DataConfig, tmp_path: Path) -> Path:
    """A folder that holds a run, and inside of it its shards, as the run's config names them."""
    params, metadata, _ = load_params(finished_run)
    run = tmp_path / "home" / "run"
    config = metadata.config | {"output_dir": str(run)}
    config["data"] = config["data"] | {"shards": str(run / "shards")}
    save_imported(run, params, RunMetadata(config, metadata.tokenizer_files, data=metadata.data))
    shutil.copytree(small_data.shards, run / "shards")
    return tmp_path / "home"


def shards_of(run_dir: Path, shards: str | None = None) -> str:
    return load_trained_run(run_dir, shards=shards).config.data.shards


def test_a_checkpoint_says_what_it_was_trained_on(finished_run: Path, small_data: DataConfig) -> None:
    assert load_metadata(finished_run)[0].data == DataIdentity.of(manifest_of(small_data))


def test_shards_inside_of_a_moved_run_are_found(
    home: Path, small_data: DataConfig, other_data: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shards_of(home / "run") == str(home / "run" / "shards")
    home.rename(tmp_path / "moved")
    moved = tmp_path / "moved" / "run"
    assert shards_of(moved) == str(moved / "shards")
    assert f"the run's token shards are in {moved / 'shards'} now" in capsys.readouterr().err
    # What lies at the old place now is no matter, unless it is the very data.
    shutil.copytree(other_data.shards, home / "run" / "shards")
    assert shards_of(moved) == str(moved / "shards")
    shutil.rmtree(moved / "shards")
    with pytest.raises(UserError, match=r"holds other data than .* was trained on \(the sources have other content"):
        shards_of(moved)
    shutil.rmtree(home)
    with pytest.raises(UserError, match=r"holds no finished token shards: name the folder .* with --data\.shards"):
        shards_of(moved)
    assert shards_of(moved, small_data.shards) == small_data.shards


def test_other_data_is_evaluated_if_it_is_asked_for(
    finished_run: Path, other_data: DataConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shards_of(finished_run, other_data.shards) == other_data.shards
    assert f"--data.shards {other_data.shards} holds other data than" in capsys.readouterr().err
    with pytest.raises(UserError, match="holds no finished token shards"):
        shards_of(finished_run, "nowhere")


def check(config: RunConfig) -> None:
    manifest = manifest_of(config.data)
    check_start(config, Tokenizer.load(config.data.tokenizer), manifest.recipe, DataIdentity.of(manifest))


def going_on(finished_run: Path, **data: object) -> RunConfig:
    config = load_run_config(finished_run / "config.yaml")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))  # type: ignore[arg-type]


def test_a_run_goes_on_wherever_its_data_lies(finished_run: Path, small_data: DataConfig, tmp_path: Path) -> None:
    for name in ("shards", "tokenizer"):
        shutil.copytree(getattr(small_data, name), tmp_path / name)
    config = going_on(
        finished_run,
        shards=str(tmp_path / "shards"),
        tokenizer=str(tmp_path / "tokenizer"),
        sources=(SourceConfig(str(tmp_path / "no longer here")),),
    )
    check(config)
    shutil.copytree(finished_run, tmp_path / "run")
    check(dataclasses.replace(config, output_dir=str(tmp_path / "run")))


def test_a_run_does_not_go_on_with_other_data(finished_run: Path, other_data: DataConfig) -> None:
    config = going_on(finished_run, shards=other_data.shards, sources=other_data.sources)
    with pytest.raises(
        UserError, match=r"holds a run on other data than data\.shards .* has now \(the sources have other"
    ):
        check(config)


def test_shards_prepared_anew_under_the_same_name_are_other_data(
    home: Path, finished_run: Path, other_data: DataConfig
) -> None:
    params, metadata, _ = load_params(finished_run)
    shards = home / "run" / "shards"
    shutil.rmtree(shards)
    prepare(dataclasses.replace(other_data, shards=str(shards)), report=lambda _: None)
    config = going_on(finished_run, shards=str(shards), sources=other_data.sources)
    config = dataclasses.replace(config, output_dir=str(home / "again"))
    save_imported(home / "again", params, RunMetadata(to_dict(config), metadata.tokenizer_files, data=metadata.data))
    with pytest.raises(UserError, match="holds a run on other data"):
        check(config)


def test_a_run_of_an_earlier_version_knows_no_data(home: Path, finished_run: Path, small_data: DataConfig) -> None:
    params, metadata, _ = load_params(finished_run)
    config = going_on(finished_run)
    config = dataclasses.replace(config, output_dir=str(home / "old"))
    save_imported(home / "old", params, RunMetadata(to_dict(config), metadata.tokenizer_files))
    check(config)
    assert shards_of(home / "old") == small_data.shards

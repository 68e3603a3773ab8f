"""Rows to calibrate on come from the training split alone, those of the gate from what is held out."""

import numpy as np
import pytest

from convert.quantizing import rows
from convert.quantizing.rows import Wanted
from stellarbyte.errors import UserError
from stellarbyte_jax.data.manifest import Manifest
from stellarbyte_jax.data.token_shards import TokenShards

WANTED = Wanted(samples=5, length=24, bos=0, seed=0)


def stream_of(run_dir, split):
    shards = run_dir.parent / "shards"
    found = TokenShards(shards, split, Manifest.load(shards))
    return found.read(0, found.tokens)


def is_in(row, stream):
    """Whether a row's tokens, without a bos that was put before them, follow each other somewhere in a stream."""
    windows = np.lib.stride_tricks.sliding_window_view(stream, len(row) - 1)
    return bool((windows == row[1:]).all(1).any())


def test_a_run_calibrates_on_its_training_split_and_measures_on_the_other(trained) -> None:
    found = rows.of_run(trained, None, WANTED)
    train, validation = (stream_of(trained, split) for split in ("train", "validation"))
    assert found.calibration.shape == (5, 24)
    assert found.calibration.dtype == found.held_out.dtype == np.int64
    for row in found.calibration:
        assert row[0] == 0 and is_in(row, train) and not is_in(row, validation)
    for row in found.held_out:
        assert row[0] == 0 and is_in(row, validation) and not is_in(row, train)


def test_the_seed_chooses_the_rows(trained) -> None:
    one, again, other = (rows.of_run(trained, None, Wanted(5, 24, 0, seed)).calibration.tolist() for seed in (1, 1, 2))
    assert one == again != other


def test_text_is_split_and_no_passage_is_on_both_sides(text, tokenizer) -> None:
    found = rows.of_text(str(text), tokenizer.encode, WANTED, report=lambda _: None)
    calibration, held_out = (
        {tokenizer.decode([int(t) for t in row[1:]]) for row in part} for part in (found.calibration, found.held_out)
    )
    assert len(calibration) == 5 and held_out and not calibration & held_out


def test_a_few_lines_of_text_serve_as_well(tmp_path, tokenizer) -> None:
    (tmp_path / "short.txt").write_text("the star that was a byte, and the byte that was a star. " * 12)
    found = rows.of_text(str(tmp_path / "short.txt"), tokenizer.encode, WANTED, report=lambda _: None)
    assert len(found.calibration) >= 1 and len(found.held_out) >= 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no text"),
        ("a star", r"has \d+ tokens, fewer than the 24 of one sample: name more text with --data, or shorten"),
    ],
)
def test_too_little_text_is_told(tmp_path, tokenizer, content, sentence) -> None:
    (tmp_path / "t.txt").write_text(content)
    with pytest.raises(UserError, match=sentence):
        rows.of_text(str(tmp_path / "t.txt"), tokenizer.encode, WANTED, report=lambda _: None)


def test_shards_of_another_tokenizer_are_refused(trained) -> None:
    shards = trained.parent / "shards"
    sha256 = Manifest.load(shards).recipe.tokenizer_sha256
    assert len(rows.of_shards(shards, sha256, WANTED).calibration) == 5
    with pytest.raises(UserError, match=r"--data .* was made with another tokenizer"):
        rows.of_shards(shards, "0" * 64, WANTED)


def test_an_imported_model_has_no_shards(run_dir) -> None:
    with pytest.raises(UserError, match="holds an imported model, which has no token shards: name text with --data"):
        rows.of_run(run_dir, None, WANTED)

"""Figures of a split against a calculation by hand."""

import dataclasses
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from stellarbyte.errors import UserError
from stellarbyte_jax.checkpoints.checkpoint import RunMetadata, load_metadata, load_params, save_imported
from stellarbyte_jax.config import DataConfig
from stellarbyte_jax.config_file import load_run_config
from stellarbyte_jax.data.prepare import prepare
from stellarbyte_jax.data.tokenizer import Tokenizer
from stellarbyte_jax.data.tokenizer_training import train_tokenizer
from stellarbyte_jax.training.evaluation import byte_lengths, evaluate, evaluate_run
from stellarbyte_jax.training.state import abstract_model
from stellarbyte_jax.training.step import make_eval_step
from test_jax.shards import validation_batches
from tiers import short_tier


def by_hand(run_dir: Path) -> dict[str, float]:
    """Row by row: log-softmax in float64 of each logit, and the text that each label stands for."""
    params, _, _ = load_params(run_dir)
    config = load_run_config(run_dir / "config.yaml")
    tokenizer = Tokenizer.load(config.data.tokenizer)
    graphdef, _ = abstract_model(config.model)
    forward = jax.jit(lambda params, *inputs: nnx.merge(graphdef, params)(*inputs).logits)
    nats, correct, tokens, text = 0.0, 0, 0, b""
    for batch in validation_batches(config.data, batch_size=1):
        logits = forward(params, batch["input_ids"], batch["position_ids"], batch["segment_ids"])[0]
        for logits_V, label in zip(np.asarray(logits, np.float64), batch["labels"][0].tolist(), strict=True):
            if label == -100:
                continue
            nats += np.log(np.exp(logits_V - logits_V.max()).sum()) + logits_V.max() - logits_V[label]
            correct += int(logits_V.argmax() == label)
            tokens += 1
            text += tokenizer.decode_bytes([label])
    return {
        "loss": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "accuracy": correct / tokens,
        "bits_per_byte": nats / math.log(2) / len(text),
        "tokens": tokens,
    }


def test_figures_equal_a_calculation_by_hand(finished_run: Path) -> None:
    done: list[int] = []
    figures, step = evaluate_run(finished_run, progress=lambda count, _: done.append(count))
    assert step == 12
    assert figures == pytest.approx(by_hand(finished_run), rel=1e-5)
    config = load_run_config(finished_run / "config.yaml")
    assert done == list(range(1, 1 + len(list(validation_batches(config.data, config.training.batch_size)))))


def test_the_bytes_are_those_of_the_validation_text(small_data: DataConfig) -> None:
    """Every byte of text is a label once: a document begins with <|SBOS|>, and rows take up where others end."""
    tokenizer = Tokenizer.load(small_data.tokenizer)
    lengths = np.asarray(byte_lengths(tokenizer, tokenizer.vocab_size + 5))
    assert lengths.shape == (tokenizer.vocab_size + 5,)
    assert (lengths[tokenizer.vocab_size :] == 0).all()
    assert lengths[[tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]].tolist() == [0, 0, 0]
    batches = list(validation_batches(small_data, 1))
    inputs, labels = (np.concatenate([batch[name][0] for batch in batches]) for name in ("input_ids", "labels"))
    assert lengths[labels[labels != -100]].sum() == len(tokenizer.decode_bytes(inputs.tolist())) > 0


# The split has a number of rows that none of these divides.
@pytest.mark.parametrize("batch_size", short_tier([4, 5, 16], 1, 2))
def test_padding_counts_for_nothing(batch_size: int, finished_run: Path) -> None:
    config = load_run_config(finished_run / "config.yaml")
    rows = len(list(validation_batches(config.data, 1)))
    assert rows % batch_size
    graphdef, _ = abstract_model(config.model)
    lengths = byte_lengths(Tokenizer.load(config.data.tokenizer), config.model.vocab_size)
    step, params = jax.jit(make_eval_step(graphdef)), load_params(finished_run)[0]
    one_by_one = evaluate(step, params, validation_batches(config.data, 1), lengths)
    figures = evaluate(step, params, validation_batches(config.data, batch_size), lengths)
    assert figures == pytest.approx(one_by_one, rel=1e-6)
    assert figures["tokens"] == one_by_one["tokens"]


def test_an_older_checkpoint_by_step(finished_run: Path) -> None:
    newest, _ = evaluate_run(finished_run)
    older, step = evaluate_run(finished_run, step=10)
    assert step == 10
    assert older["loss"] != newest["loss"]
    with pytest.raises(UserError, match="no checkpoint of step 11, only of 10, 12"):
        evaluate_run(finished_run, step=11)


@pytest.fixture
def movable(finished_run: Path, small_data: DataConfig, tmp_path: Path) -> Path:
    """The run, whose config names shards in tmp_path, and a tokenizer's folder that is not there."""
    params, metadata, _ = load_params(finished_run)
    moved = {"tokenizer": str(tmp_path / "nowhere"), "shards": str(tmp_path / "shards")}
    config = metadata.config | {"data": metadata.config["data"] | moved}
    save_imported(tmp_path / "run", params, RunMetadata(config, metadata.tokenizer_files))
    shutil.copytree(small_data.shards, tmp_path / "shards")
    return tmp_path / "run"


def test_the_run_holds_its_own_tokenizer(movable: Path, finished_run: Path) -> None:
    assert evaluate_run(movable)[0] == evaluate_run(finished_run)[0]


def test_shards_that_are_gone_or_of_another_tokenizer_are_refused(
    movable: Path, small_data: DataConfig, corpus: Path, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path / "shards")
    with pytest.raises(UserError, match="shards"):
        evaluate_run(movable)
    train_tokenizer([corpus.read_text(encoding="utf-8")], 300, tmp_path / "other", report=lambda _: None)
    other = dataclasses.replace(small_data, tokenizer=str(tmp_path / "other"), shards=str(tmp_path / "shards"))
    prepare(other, report=lambda _: None)
    with pytest.raises(UserError, match=r"data\.shards .* was made with another tokenizer than that of"):
        evaluate_run(movable)


def test_an_imported_model_has_no_split(finished_run: Path, tmp_path: Path) -> None:
    metadata, _ = load_metadata(finished_run)
    imported = RunMetadata({"model": metadata.config["model"]}, metadata.tokenizer_files)
    save_imported(tmp_path / "run", load_params(finished_run)[0], imported)
    with pytest.raises(UserError, match="imported model, which has no validation split"):
        evaluate_run(tmp_path / "run")

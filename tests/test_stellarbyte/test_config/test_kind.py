from pathlib import Path

import pytest

from stellarbyte.config.kind import kind_of
from stellarbyte.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("path", sorted((CONFIGS / "run").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_pretraining(path):
    assert kind_of(path) == "pretraining"


@pytest.mark.parametrize("path", sorted((CONFIGS / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_fine_tuning(path):
    assert kind_of(path) == "finetuning"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("output_dir: x\nmodel: m\ndata: {shards: s}", "pretraining"),
        ("output_dir: x\nmodel: {vocab_size: 3}", "pretraining"),
        ("output_dir: x\ndata: {sources: [{path: x}]}\nmesh: {data: 1}", "pretraining"),
        ("model: m\ndata: {packing: true}", "finetuning"),
        ("model: m\nquantization: nf4\nlora: {r: 3}", "finetuning"),
        ("model: m\ntraining: {learning_rate: 1}\ndata: x", "finetuning"),
        # A field in the wrong place does not outweigh the others.
        ("data: {shards: s, tokens_per_shard: 3}\ndtype: bfloat16", "pretraining"),
    ],
)
def test_fields_tell_the_kind(text, kind, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    assert kind_of(tmp_path / "c.yaml") == kind


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "may be a pretraining or a fine-tuning config: give data.shards in the one, or training.per_device"),
        ("model: m\noutput_dir: x\nlora: {r: 3}", "may be a pretraining or a fine-tuning config"),
        ("vocab_size: 320\nhidden_size: 16", "is the config of a model: name the config of a run"),
        ("[1", "c.yaml:1: is not valid YAML"),
    ],
)
def test_what_tells_nothing_is_refused(text, complaint, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        kind_of(tmp_path / "c.yaml")

from dataclasses import fields, replace
from pathlib import Path

import pytest
from transformers import TrainingArguments

from stellarbyte.config.plain import differing_fields, save_yaml
from stellarbyte.errors import UserError
from stellarbyte_torch.data.config import DataConfig, SourceConfig
from stellarbyte_torch.finetune.config import (
    FinetuneConfig,
    TrainableConfig,
    load_finetune_config,
)
from stellarbyte_torch.finetune.setup import training_arguments

ROOT = Path(__file__).parents[3]
HEAD = "model: m/n\noutput_dir: out\ndata: {sources: [{path: x}]}\n"
BASE = FinetuneConfig("m/n", "out", DataConfig((SourceConfig("x"),)))


def load(text: str, tmp_path: Path, *overrides: str) -> FinetuneConfig:
    (tmp_path / "c.yaml").write_text(HEAD + text, encoding="utf-8")
    return load_finetune_config(tmp_path / "c.yaml", overrides)


def test_defaults(tmp_path: Path) -> None:
    assert load("lora:\ntraining:\n", tmp_path) == BASE


def test_fields_of_peft_and_transformers(tmp_path: Path) -> None:
    text = """\
lora:
  r: 4
  target_modules: [q_proj, v_proj]
  rank_pattern: {q_proj: 2}
  layers: 0-1
  init_lora_weights: gaussian
  loraplus_lr_ratio: 16
  trainable_token_indices: [1, 2]
training:
  learning_rate: 1e-4
  lr_scheduler_type: cosine
  optim: adamw_torch
  report_to: [tensorboard]
  activation_checkpointing: true
  activation_checkpointing_kwargs: {use_reentrant: false}
  fsdp_config: {version: 2}
  eval_steps: 10
  save_strategy: no
"""
    config = load(text, tmp_path)
    assert config.lora == {
        **{"r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}, "layers": "0-1"},
        **{"init_lora_weights": "gaussian", "loraplus_lr_ratio": 16.0, "trainable_token_indices": [1, 2]},
    }
    assert config.training == {
        **{"learning_rate": 1e-4, "lr_scheduler_type": "cosine", "optim": "adamw_torch", "eval_steps": 10.0},
        **{"report_to": ["tensorboard"], "activation_checkpointing": True, "fsdp_config": {"version": 2}},
        **{"activation_checkpointing_kwargs": {"use_reentrant": False}, "save_strategy": "no"},
    }


@pytest.mark.parametrize("flag", [True, False])
def test_fsdp_may_be_true_or_false(flag: bool, tmp_path: Path) -> None:
    word = str(flag).lower()
    written = load(f"training: {{fsdp: {word}}}\n", tmp_path)
    given = load("", tmp_path, "--training.fsdp", word)
    assert written.training == given.training == {"fsdp": flag}
    save_yaml(written, tmp_path / "saved.yaml")
    assert load_finetune_config(tmp_path / "saved.yaml").training == {"fsdp": flag}


def test_overrides(tmp_path: Path) -> None:
    words = ["--output_dir", "2026", "--training.max_steps=10", "--data.sources.1.path", "y", "--lora.r", "4"]
    config = load("training: {seed: 3}\n", tmp_path, *words, "--trainable", "null", "--data.seed", "5")
    assert config == replace(
        BASE,
        output_dir="2026",
        data=DataConfig((SourceConfig("x"), SourceConfig("y")), seed=5),
        training={"seed": 3, "max_steps": 10},
        lora={"r": 4},
    )


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    lora = {"r": 4, "layers": [0, 1], "target_modules": "all-linear", "rank_pattern": {"a.b": 2}}
    configs = [
        replace(BASE, lora=lora, training={"learning_rate": 1e-30, "optim": "sgd", "report_to": ["none"]}),
        replace(BASE, trainable=TrainableConfig((0, 2), norms=True), dtype="bfloat16"),
    ]
    for config in configs:
        save_yaml(config, tmp_path / "a" / "config.yaml")
        loaded = load_finetune_config(tmp_path / "a" / "config.yaml")
        assert loaded == config
        assert differing_fields(loaded, config) == []
    differing = differing_fields(configs[0], replace(configs[0], lora={"r": 5, "bias": "all"}, dtype="float32"))
    assert ("lora.r", 4, 5) in differing and ("lora.bias", None, "all") in differing
    assert ("dtype", "auto", "float32") in differing


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lor: {r: 8}", "c.yaml:4: lor is not a field; did you mean lora?"),
        ("data: x", "c.yaml:4: data is given twice"),
        ("lora:\n  lora_alfa: 8", "c.yaml:5: lora.lora_alfa is not a field; did you mean lora.lora_alpha?"),
        ("lora:\n  r: 0", "c.yaml:5: lora.r is 0: a rank is a whole number, 1 or more"),
        ("lora:\n  r: eight", "c.yaml:5: lora.r is 'eight', expected an integer"),
        ("lora: [r]", "c.yaml:4: lora is a list, expected a mapping"),
        ("lora:\n  bias: both", "c.yaml:5: lora.bias is 'both', expected one of none, all, lora_only"),
        ("lora:\n  target_modules: 3", "c.yaml:5: lora.target_modules is 3, expected a list or a string (quote it)"),
        ("lora:\n  activation: gul", "c.yaml:5: lora.activation 'gul' is unknown: choose one of gelu"),
        ("training:\n  max_stps: 3", "c.yaml:5: training.max_stps is not a field; did you mean training.max_steps?"),
        (
            "training:\n  zzz: 3",
            "c.yaml:5: training.zzz is not a field; the fields here are those of TrainingArguments",
        ),
        ("training:\n  gradient_accumulation_steps: 0", "training.gradient_accumulation_steps is 0: choose 1 or more"),
        ("training:\n  report_to: foo", "c.yaml:5: training.report_to is 'foo', expected one of none, all, "),
        ("training:\n  report_to: [none, tensorbord]", "did you mean tensorboard?"),
        ("training:\n  learning_rate: -1", "c.yaml:5: training.learning_rate is -1.0: choose more than 0"),
        ("training:\n  adam_beta2: 1", "c.yaml:5: training.adam_beta2 is 1.0: choose at least 0 and less than 1"),
        ("training:\n  seed: -3", "c.yaml:5: training.seed is -3: choose 0 to 4294967295"),
        (
            "training:\n  max_steps: 0",
            "c.yaml:5: training.max_steps is 0: choose 1 or more, at most 1,000,000,000, or leave it out",
        ),
        (
            "training:\n  max_steps: 10000000000",
            "training.max_steps is 10000000000: choose 1 or more, at most 1,000,000,",
        ),
        (
            "training:\n  num_train_epochs: 1e12",
            "num_train_epochs is 1000000000000.0: choose more than 0, at most 1,000,",
        ),
        (
            "training:\n  save_steps: 1e12",
            "training.save_steps is 1000000000000.0: choose more than 0, at most 1,000,000",
        ),
        (
            "training:\n  dataloader_num_workers: 1000000",
            "c.yaml:5: training.dataloader_num_workers is 1000000: choose",
        ),
        ("training:\n  learning_rate: 1e-320", "learning_rate is 1e-320: choose more than 0, as float32 holds it"),
        ("training:\n  adam_epsilon: 1e300", "training.adam_epsilon is 1e+300: choose 0 or more, as float32 holds it"),
        (
            "training:\n  activation_checkpointing_kwargs: {nothing: true}",
            "write a mapping of use_reentrant, preserve_",
        ),
        (
            "training:\n  gradient_checkpointing_kwargs: {use_reentrant: 3}",
            "write a mapping of use_reentrant, preserve_",
        ),
        ("lora:\n  lora_alpha: 1e-320", "c.yaml:5: lora.lora_alpha is 1e-320: an alpha is a number other than 0"),
        (
            "early_stopping_patience: 10000000000",
            "c.yaml:4: early_stopping_patience is 10000000000: choose 1 or more, at",
        ),
        ("training:\n  num_train_epochs: 0", "c.yaml:5: training.num_train_epochs is 0.0: choose more than 0"),
        ("training:\n  optim_args: lots", "c.yaml:5: training.optim_args is lots: write it as name=value"),
        ("training:\n  lr_scheduler_kwargs: x", "c.yaml:5: training.lr_scheduler_kwargs is x: write a mapping"),
        (
            "training:\n  dataloader_num_workers: -1",
            "c.yaml:5: training.dataloader_num_workers is -1: choose 0 or more",
        ),
        ("training:\n  max_steps: 3.5", "c.yaml:5: training.max_steps is 3.5, expected an integer"),
        ("training:\n  lr_scheduler_type: cosin", "c.yaml:5: training.lr_scheduler_type is 'cosin', expected one of"),
        ("training:\n  lr_scheduler_type: cosin", "did you mean cosine?"),
        (
            "training:\n  output_dir: x",
            "c.yaml:5: training.output_dir is not for the config: give output_dir at the top",
        ),
        ("training:\n  push_to_hub: true", "c.yaml:5: training.push_to_hub is not for the config: upload the folder"),
        (
            "lora: {r: 1}\ntrainable: {norms: true}",
            "c.yaml:5: trainable is for runs without lora, whose own train_layers",
        ),
        ("trainable: {norms: false}", "c.yaml:4: trainable.layers, embeddings, norms, head: name one at least"),
        (
            "early_stopping_patience: 0",
            "c.yaml:4: early_stopping_patience is 0: choose 1 or more, at most 1,000,000,000, or null",
        ),
        ("quantization: int8", "c.yaml:4: quantization int8 is for a base under lora"),
        ("quantization: int4", "c.yaml:4: quantization is 'int4', expected one of none, int8, nf4; did you mean int8?"),
        ("dtype: float16", "c.yaml:4: dtype float16 cannot train, as its updates vanish"),
    ],
)
def test_mistakes(text: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load(text, tmp_path)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["max_steps", "3"], "'max_steps' is not an override: write --section.field value"),
        (["--training.max_steps"], "--training.max_steps has no value: write --training.max_steps value"),
        (["--training.max_steps", "x"], "--training.max_steps x: training.max_steps is 'x', expected an integer"),
        (["--data.sources.2.path", "x"], "data.sources is a list of 1: '2' is no index of it"),
        (["--model.name", "x"], "--model.name x: model is 'm/n', which has no field name"),
        (["--output_dir="], "--output_dir=: output_dir is empty: name a folder or a file"),
        (['--output_dir="a\\eb"'], "output_dir 'a\\x1bb' holds a character that cannot be printed"),
        (["--lora.rr=3"], "--lora.rr=3: lora.rr is not a field; did you mean lora.r?"),
        (["--data.max_length", "9"], "--data.max_length 9: data.max_length is called data.sequence_length: rename it"),
        (["--data.sequence_length", "1"], "--data.sequence_length 1: data.sequence_length is 1 but must be at least 2"),
    ],
)
def test_mistakes_in_overrides(words: list[str], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load("", tmp_path, *words)
    assert complaint in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_load(path: Path) -> None:
    assert load_finetune_config(path).output_dir.startswith("runs/")


@pytest.mark.long
def test_no_value_of_a_training_argument_is_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(HEAD + "lora: {r: 4}\n", encoding="utf-8")
    words = (
        "foo",
        "-1",
        "0",
        "1.5",
        "1e30",
        ".nan",
        ".inf",
        "[]",
        "[foo]",
        "{}",
        "{a: 1}",
        "true",
        "null",
        "''",
        "9" * 30,
    )
    refused = 0
    for field in fields(TrainingArguments):
        for word in words if field.init else ():
            try:
                config = load_finetune_config(tmp_path / "c.yaml", [f"--training.{field.name}={word}"])
                training_arguments(replace(config, output_dir=str(tmp_path / "run")), {})
            except UserError:
                refused += 1
    assert refused > 1000

"""What a config asks of an adapter that is to be trained, or of reports, and cannot have: a sentence each."""

import copy
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stellarbyte.config.plain import yaml_text
from stellarbyte.errors import UserError
from stellarbyte_torch.finetune.setup import make_trainable, training_arguments, training_fields
from stellarbyte_torch.finetune.training_values import DEFAULTS
from test_torch.finetuning import config
from test_torch.tiny import tiny_model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ({"inference_mode": True}, "lora.inference_mode is true, and then nothing trains"),
        (
            {"target_modules": ".*q_proj", "layers_to_transform": [0]},
            "lora.layers_to_transform narrows a list of target_",
        ),
        ({"target_modules": "all-linear", "layers_pattern": "layers"}, "lora.layers_pattern narrows a list"),
        ({"layers_pattern": "layers"}, "lora.layers_pattern says where layers_to_transform counts"),
        ({"init_lora_weights": "loftq"}, "lora.init_lora_weights loftq replaces the base by a quantised one"),
        ({"loftq_config": {"loftq_bits": 4}}, "lora.loftq_config replaces the base by a quantised one"),
        ({"peft_type": "IA3"}, "lora.peft_type is 'IA3': leave it out"),
        ({"target_modules": []}, "lora.target_modules is empty: choose from down_proj, "),
        ({"target_modules": "all-linear", "layers": "5-9"}, "lora.layers names layer 5, and the model has layers 0 to"),
        ({"target_modules": ".*proj", "layers": "5-9"}, "lora.layers names layer 5, and the model has layers 0 to"),
        ({"layers_to_transform": [9]}, "lora.layers_to_transform names layer 9, and the model has layers 0 to"),
        ({"init_lora_weights": "eva"}, "lora.init_lora_weights eva starts from measurements of the data"),
        ({"init_lora_weights": "corda"}, "lora.init_lora_weights corda starts from"),
        ({"init_lora_weights": "pissa", "use_dora": True}, "lora.init_lora_weights pissa does not go with use_dora"),
        ({"init_lora_weights": "pisa"}, "lora.init_lora_weights is 'pisa': choose one of true, false, gaussian"),
        ({"task_type": "SEQ_CLS"}, "lora.task_type is SEQ_CLS, and this command trains causal language models"),
        ({"use_dora": True, "lora_bias": True}, "lora: these fields do not go together: The argument lora_bias=True"),
        ({"rank_pattern": {"q_porj": 3}}, "lora.rank_pattern has 'q_porj', which fits nothing that is adapted"),
        ({"modules_to_save": ["layers"]}, "lora.target_modules ['q_proj'] match no module once layers"),
        ({"r": 10**12}, "lora.r is 1000000000000: a rank is a whole number"),
        ({"layers": "0-999999999"}, "lora.layers is '0-999999999': no model has 999999999 layers"),
    ],
)
def test_what_no_adapter_can_be_trained_with(lora: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    given = config(tmp_path, tmp_path, lora={"target_modules": ["q_proj"], **lora})
    with pytest.raises(UserError) as refused:
        make_trainable(tiny_model(), given)
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"report_to": "foo"}, "training.report_to is 'foo', expected one of none, all, "),
        ({"report_to": "comet_ml"}, "training.report_to comet_ml needs a package: pip install comet_ml"),
        ({"use_liger_kernel": True}, "training.use_liger_kernel needs a package: pip install liger-kernel"),
        ({"accelerator_config": "no.json"}, "training.accelerator_config no.json is not a file: name a JSON file"),
        ({"fsdp_config": "no.json"}, "training.fsdp_config no.json is not a file: name a JSON file"),
        ({"dataloader_persistent_workers": True}, "training.dataloader_persistent_workers is for workers, and there"),
        ({"dataloader_prefetch_factor": 2}, "training.dataloader_prefetch_factor is for workers, and there are none"),
        ({"dataloader_multiprocessing_context": "fork"}, "training.dataloader_multiprocessing_context is for workers"),
        ({"ddp_backend": "gloo"}, "training.ddp_backend is for several processes: leave it out"),
        ({"ddp_backend": "foo"}, "training.ddp_backend is 'foo', expected one of nccl, gloo, "),
    ],
)
def test_what_is_not_there(training: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        training_arguments(config(tmp_path, tmp_path, training=training), {})
    assert str(refused.value).startswith(sentence)


def test_deepspeed_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stellarbyte_torch.finetune.setup.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"training\.deepspeed needs a package: pip install deepspeed"):
        training_arguments(config(tmp_path, tmp_path, training={"deepspeed": {"zero_optimization": {"stage": 2}}}), {})


@pytest.mark.parametrize(
    "training",
    [
        {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": ["ByteLayer"]}},
        {"accelerator_config": {"dispatch_batches": False}},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5}},
    ],
)
def test_the_config_stays_as_it_is(training: dict[str, Any], tmp_path: Path) -> None:
    """A run is known by its config, and Transformers fills in dicts that it is given."""
    settings = config(tmp_path, tmp_path / "run", training=training)
    before = copy.deepcopy(settings.training)
    with suppress(UserError):  # FSDP wants several processes
        training_arguments(settings, {})
    assert settings.training == before


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (
            {"optim_args": "momentum=0.9"},
            "training.optim_args has 'momentum', which optim adamw_torch_fused does not re",
        ),
        (
            {"optim": "sgd", "optim_args": "momentun=0.9"},
            "training.optim_args has 'momentun', which optim sgd does not",
        ),
        (
            {"activation_checkpointing_kwargs": {"use_reentrant": True}},
            "training.activation_checkpointing_kwargs is for",
        ),
        ({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, "training.gradient_checkpointing_kwargs is for"),
    ],
)
def test_fields_that_others_leave_without_effect(training: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        training_arguments(config(tmp_path, tmp_path, training=training), {})
    assert str(refused.value).startswith(sentence)


@pytest.mark.parametrize(
    "training",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"gradient_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_fields_that_have_their_effect(training: dict[str, Any], tmp_path: Path) -> None:
    assert training_arguments(config(tmp_path, tmp_path, training=training), {})


def test_the_defaults_that_are_told_are_those_that_are_set(tmp_path: Path) -> None:
    given = config(tmp_path, tmp_path, training={})
    lora, whole = (training_fields(replace(given, training={}, lora=lora)) for lora in ({}, None))
    assert set(lora) == set(DEFAULTS)
    assert DEFAULTS[
        "learning_rate"
    ] == f"{lora['learning_rate']:.0e} with lora, {whole['learning_rate']:.0e} without".replace("e-0", "e-")
    for name, words in DEFAULTS.items():
        if " " not in words:
            assert words == yaml_text(lora[name], one_line=True)
        else:
            assert words.startswith(("that of", yaml_text(lora[name], one_line=True), "true", "2e-4")), name

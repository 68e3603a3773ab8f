"""LoRAConfig: what it refuses, and that it saves as PEFT's own json."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
from peft import get_peft_model

from stellarbyte.errors import UserError
from stellarbyte.layer_ranges import layer_numbers
from stellarbyte_torch import LoRAConfig
from test_torch.tiny import tiny_model


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"r": 0}, "r is 0: a rank is a whole number, 1 or more"),
        ({"r": -3}, "r is -3: a rank"),
        ({"r": True}, "r is True: a rank"),
        ({"r": 2.5}, "r is 2.5: a rank"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0: a rank"),
        ({"target_module": ["q_proj"]}, "field 'target_module' is unknown .* did you mean 'target_modules'"),
        ({"lora_droput": 0.1}, "field 'lora_droput' is unknown to PEFT .* did you mean 'lora_dropout'"),
        ({"zzz": 1}, "field 'zzz' is unknown to PEFT .* remove it"),
        ({"lora_dropout": 1.0}, "lora_dropout is 1.0: choose a probability"),
        ({"activation": "softmax"}, "activation 'softmax' is unknown: choose one of gelu, relu"),
        ({"l2_reg": -1.0}, "l2_reg is -1.0: choose 0"),
        ({"orthogonal_reg": -1.0}, "orthogonal_reg is -1.0: choose 0"),
        ({"loraplus_lr_ratio": 0.0}, "loraplus_lr_ratio is 0.0: choose more than 0"),
        ({"layers": "3-1"}, "layers is '3-1': 3-1 runs backwards"),
        ({"layers": "all"}, "layers is 'all': write layer numbers as"),
        ({"layers": []}, r"layers is \[\]: name one layer"),
        ({"layers": [0], "layers_to_transform": [0]}, "say the same thing"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        LoRAConfig(**fields)
    with pytest.raises(UserError, match=sentence):
        LoRAConfig.from_dict(fields)


def test_layer_numbers_are_read_as_pages_of_a_printer() -> None:
    assert layer_numbers("0-3, 8,2", "layers") == [0, 1, 2, 3, 8]
    assert layer_numbers(range(4, 6), "layers") == [4, 5]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_it_saves_as_pefts_json_and_comes_back(activation: str | None, tmp_path: Path) -> None:
    config = LoRAConfig(
        **{"r": 4, "target_modules": ["q_proj"], "layers": "0-1", "activation": activation, "use_rslora": True},
        **{"l2_reg": 0.1, "orthogonal_reg": 0.1, "loraplus_lr_ratio": 8.0, "train_norms": True},
    )
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    peft.LoraConfig(r=4, target_modules=["q_proj"]).save_pretrained(tmp_path / "stock")
    stock = json.loads((tmp_path / "stock" / "adapter_config.json").read_text())
    assert saved.keys() - stock.keys() == ({"activation"} if activation else set())
    assert saved["layers_to_transform"] == [0, 1] and saved["use_rslora"]

    loaded = LoRAConfig.from_pretrained(str(tmp_path))
    assert type(loaded) is LoRAConfig and loaded.activation == activation and loaded.peft_type == "LORA"
    assert loaded.target_modules == {"q_proj"}
    assert LoRAConfig.from_pretrained(str(tmp_path / "stock")).r == 4


def test_a_json_with_a_field_that_peft_does_not_know_is_refused(tmp_path: Path) -> None:
    LoRAConfig(r=4, target_modules=["q_proj"]).save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_warp": True}))
    with pytest.raises(UserError, match=r"field 'use_warp' is unknown to PEFT"):
        LoRAConfig.from_pretrained(str(tmp_path))


def test_a_json_of_another_method_is_refused(tmp_path: Path) -> None:
    peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"unknown to PEFT|peft_type is 'IA3'"):
        LoRAConfig.from_pretrained(str(tmp_path))


def test_copies_are_equal() -> None:
    config = LoRAConfig(r=4, target_modules="all-linear", layers="1", exclude_modules=["k_proj"])
    for other in (copy.deepcopy(config), dataclasses.replace(config)):
        assert other.to_dict() == config.to_dict()


def test_freezing_fields_are_never_left_out_in_silence() -> None:
    with pytest.raises(
        UserError, match=r"train_norms, train_layers: needs stellarbyte_torch\.lora\.apply_lora_to_model"
    ):
        get_peft_model(tiny_model(), LoRAConfig(target_modules=["q_proj"], train_norms=True, train_layers="1"))

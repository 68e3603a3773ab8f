"""LoRAConfig: its YAML, what it says of a module, and what it refuses."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from stellarbyte.config.plain import differing_fields
from stellarbyte.errors import UserError
from stellarbyte_jax.config import LoRAConfig, RunConfig
from stellarbyte_jax.config_file import load_run_config, lora_config_from_dict, save_config, to_dict

MakeConfig = Callable[..., RunConfig]


def written(config: RunConfig, folder: Path, lora: Any, **fields: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(to_dict(config) | {"init_from": "there", "lora": lora} | fields, sort_keys=False))
    return path


def test_yaml_there_and_back(run_config: MakeConfig, tmp_path: Path) -> None:
    lora = LoRAConfig(("q_proj", "mlp.up_proj"), r=4, layers="0,1", rank_pattern={"q_proj": 2}, alpha_pattern={})
    config = dataclasses.replace(run_config(), init_from="there", lora=lora)
    save_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path / "config.yaml") == config
    assert lora_config_from_dict(to_dict(lora), "here") == lora
    path = written(run_config(), tmp_path, {"target_modules": "all-linear"})
    assert load_run_config(path, ["--lora.r", "3"]).lora == LoRAConfig("all-linear", r=3)
    assert load_run_config(path, ["--lora", "null"]).lora is None


def test_what_it_says_of_a_module() -> None:
    lora = LoRAConfig(
        ("q_proj", "mlp.up_proj"),
        r=4,
        lora_alpha=6,
        rank_pattern={"q_proj": 2, "self_attn.q_proj": 3},
        alpha_pattern={"up_proj": 1},
    )
    names = ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj", "mlp.shared_experts.up_proj", "xq_proj")
    assert [lora.adapts(name) for name in names] == [True, False, True, False, False]
    assert (lora.rank("self_attn.q_proj"), lora.rank("mlp.up_proj")) == (2, 4)
    assert (lora.scaling("self_attn.q_proj"), lora.scaling("mlp.up_proj")) == (3.0, 0.25)
    assert dataclasses.replace(lora, use_rslora=True).scaling("mlp.up_proj") == 0.5
    assert LoRAConfig(("q_proj",), layers="0-1, 3").layer_numbers(4) == [0, 1, 3]
    assert LoRAConfig(("q_proj",)).layer_numbers(2) == [0, 1]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({}, "lora.target_modules is missing and must be given"),
        ({"target_modules": None}, "lora.target_modules is null, expected a list or a string"),
        ({"target_modules": "q_proj"}, "q_proj must be a list of modules such as [q_proj], or all-linear"),
        ({"target_modules": []}, "lora.target_modules [] names no module"),
        ({"target_modules": ["q_proj"], "r": 0}, "lora.r 0 must be at least 1"),
        ({"target_modules": ["q_proj"], "r": 1.5}, "lora.r is 1.5, expected an integer"),
        ({"target_modules": ["q_proj"], "lora_dropout": 1}, "lora.lora_dropout 1.0 must be at least 0 and less than 1"),
        ({"target_modules": ["q_proj"], "layers": "2-1"}, "lora.layers is '2-1': 2-1 runs backwards"),
        ({"target_modules": ["q_proj"], "layers": "all"}, "lora.layers is 'all': write layer numbers as"),
        ({"target_modules": ["q_proj"], "layers": "1-2"}, "names layer 2, but the model has layers 0 to 1"),
        ({"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 0}}, "lora.rank_pattern.q_proj 0 must be at least"),
        ({"target_modules": ["q_proj"], "rank_pattern": [2]}, "lora.rank_pattern is a list, expected a mapping"),
        (
            {"target_modules": ["q_proj"], "alpha_pattern": {"q_proj": "x"}},
            "lora.alpha_pattern.q_proj is 'x'",
        ),
        ({"target_modules": ["q_proj"], "use_dora": True}, "lora.use_dora is not a field"),
        ({"target_modules": ["q_proj"], "lora_alfa": 1}, "did you mean lora.lora_alpha?"),
    ],
)
def test_mistakes_are_located(lora: Any, message: str, run_config: MakeConfig, tmp_path: Path) -> None:
    path = written(run_config(), tmp_path, lora)
    with pytest.raises(UserError) as refused:
        load_run_config(path)
    assert message in str(refused.value)
    assert str(refused.value).startswith(f"{path}:")


def test_adapters_need_weights_to_be_on(run_config: MakeConfig, tmp_path: Path) -> None:
    path = written(run_config(), tmp_path, {"target_modules": ["q_proj"]}, init_from=None)
    with pytest.raises(UserError, match=r"run\.yaml:\d+: init_from None must name the run whose weights lora trains"):
        load_run_config(path)


def test_the_order_of_a_pattern_is_part_of_it() -> None:
    """The first name that fits a module counts."""
    one = LoRAConfig(("q_proj",), alpha_pattern={"q_proj": 2, "self_attn.q_proj": 9})
    other = LoRAConfig(("q_proj",), alpha_pattern={"self_attn.q_proj": 9, "q_proj": 2})
    assert one.scaling("self_attn.q_proj") != other.scaling("self_attn.q_proj")
    assert [name for name, *_ in differing_fields(one, other)] == ["alpha_pattern"]
    assert differing_fields(one, one) == []

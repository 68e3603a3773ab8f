"""Names that match nothing are refused with the nearest, and patterns mean the same in any order."""

import json
import random
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import apply_lora_to_model, load_lora
from test_torch.lora_models import MODELS, fill
from test_torch.tiny import tiny_model, tokens

IDS = tokens(2, 9)
EXPERTS: dict[str, Any] = {"num_experts": 4, "moe_intermediate_size": 24, "num_hidden_layers": 3}
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
Q = ["q_proj"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rank_pattern": {"q_porj": 2}}, "which fits nothing that is adapted; did you mean 'q_proj'?"),
        ({"rank_pattern": {"v_proj": 2}}, "rank_pattern has 'v_proj', which fits nothing that is adapted"),
        ({"alpha_pattern": {"layers.7.self_attn.q_proj": 2}}, "has 'layers.7.self_attn.q_proj', which fits"),
        ({"alpha_pattern": {r"layers\.[7-9]\..*": 2}}, "which fits nothing that is adapted"),
        ({"exclude_modules": ["mlp.down_porj"]}, "which matches no module; did you mean 'mlp.down_proj'?"),
        ({"exclude_modules": ".*nowhere"}, "exclude_modules '.*nowhere' matches no module"),
        ({"modules_to_save": ["lm_haed"]}, "which matches no module; did you mean 'lm_head'?"),
        ({"modules_to_save": ["model.nrom"]}, "did you mean 'model.norm'?"),
        ({"target_modules": ["q_porj"]}, "did you mean 'q_proj'?"),
        ({"target_parameters": ["experts.nothing"]}, "'experts.nothing', which matches no parameter"),
        ({"layers": "1,5"}, "layers names layer 5, and the model has layers 0 to 1"),
        ({"layers_to_transform": 9}, "layers_to_transform names layer 9"),
        ({"layers_to_transform": [0], "layers_pattern": "blocks"}, "match no module once layers"),
        ({"trainable_token_indices": [97]}, "trainable_token_indices names token 97, and there are tokens 0 to 96"),
        ({"trainable_token_indices": {"embed_toknes": [1]}}, "did you mean 'embed_tokens'?"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error:.*did not match")
def test_what_matches_nothing(fields: dict[str, Any], sentence: str) -> None:
    model = tiny_model()
    with pytest.raises(UserError) as refused:
        apply_lora_to_model(model, LoRAConfig(**{"r": 2, "target_modules": Q, **fields}))
    assert sentence in str(refused.value)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


PATTERNS: dict[str, dict[str, Any]] = {
    "the special one first": {"rank_pattern": {"layers.1.self_attn.q_proj": 3, "q_proj": 2}},
    "the special one last": {"rank_pattern": {"q_proj": 2, "layers.1.self_attn.q_proj": 3}},
    "alphas": {"alpha_pattern": {"self_attn.q_proj": 16, "q_proj": 2, r"layers\.\d\.self_attn.*": 5}},
    "expressions": {"rank_pattern": {r".*\.1\..*": 5, "[qv]_proj": 3}, "alpha_pattern": {"z?v_proj": 3, ".*": 9}},
    "one that says what holds anyway": {"rank_pattern": {"v_proj": 4, r".*_proj": 1}},
}


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("kind", MODELS)
def test_patterns_mean_the_same_in_any_order(kind: str, name: str, tmp_path: Path) -> None:
    fields = {"r": 4, "target_modules": ["q_proj", "v_proj"], **PATTERNS[name]}
    model: Any = fill(apply_lora_to_model(MODELS[kind](), LoRAConfig(**fields))).eval()
    stock = fill(peft.get_peft_model(MODELS[kind](), peft.LoraConfig(**fields))).eval()
    expected = model(input_ids=IDS).logits
    assert torch.equal(stock(input_ids=IDS).logits, expected)  # of the order as it was written
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    for order in (
        sorted,
        lambda keys: sorted(keys, reverse=True),
        lambda keys: random.Random(0).sample(keys, len(keys)),
    ):
        for field in ("rank_pattern", "alpha_pattern"):
            saved[field] = {key: saved[field][key] for key in order(list(saved[field]))}
        path.write_text(json.dumps(saved))
        assert torch.equal(load_lora(MODELS[kind](), tmp_path)(input_ids=IDS).logits, expected)
        again = peft.PeftModel.from_pretrained(MODELS[kind](), tmp_path).eval()
        assert torch.equal(again(input_ids=IDS).logits, expected)


def test_patterns_that_do_not_collide_stay_as_they_are() -> None:
    fields: dict[str, Any] = {"rank_pattern": {"v_proj": 2, "up_proj": 3, "layers.0.self_attn.v_proj": 2}}
    model = apply_lora_to_model(tiny_model(), LoRAConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], **fields))
    assert model.peft_config["default"].rank_pattern == fields["rank_pattern"]


def adapted(model: Any) -> set[str]:
    return {
        name.removeprefix("base_model.model.model.").split(".lora_")[0].replace(".base_layer", "")
        for name, parameter in model.named_parameters()
        if "lora_A" in name
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"layers": "1"}, {"layers.1.mlp.experts", "layers.1.self_attn.q_proj"}),
        ({"layers": "0,2", "target_modules": []}, {"layers.0.mlp.experts", "layers.2.mlp.experts"}),
        ({"layers": "2", "target_modules": ".*q_proj"}, {"layers.2.mlp.experts", "layers.2.self_attn.q_proj"}),
        ({"layers_to_transform": 1}, {"layers.1.mlp.experts", "layers.1.self_attn.q_proj"}),
        ({"exclude_modules": ["layers.1.mlp.experts"], "target_modules": []},
         {"layers.0.mlp.experts", "layers.2.mlp.experts"}),
        ({"exclude_modules": r".*layers\.[01]\..*"}, {"layers.2.mlp.experts", "layers.2.self_attn.q_proj"}),
    ],
)  # fmt: skip
def test_layers_and_exclusions_narrow_parameters(fields: dict[str, Any], expected: set[str], tmp_path: Path) -> None:
    config = LoRAConfig(**{"r": 2, "target_modules": Q, "target_parameters": PARAMETERS, **fields})
    model: Any = fill(apply_lora_to_model(tiny_model(**EXPERTS), config)).eval()
    assert adapted(model) == expected
    model.save_pretrained(tmp_path)
    logits = model(input_ids=IDS).logits
    assert torch.equal(peft.PeftModel.from_pretrained(tiny_model(**EXPERTS), tmp_path)(input_ids=IDS).logits, logits)
    loaded = load_lora(tiny_model(**EXPERTS), tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, logits) and adapted(loaded) == expected


def test_what_stock_peft_trained_in_all_layers_stays_there(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"target_modules": Q, "target_parameters": PARAMETERS, "layers_to_transform": [1]}
    stock = fill(peft.get_peft_model(tiny_model(**EXPERTS), peft.LoraConfig(r=2, **fields))).eval()
    stock.save_pretrained(tmp_path)
    logits = stock(input_ids=IDS).logits
    assert torch.equal(load_lora(tiny_model(**EXPERTS), tmp_path)(input_ids=IDS).logits, logits)


def test_ranks_and_alphas_of_parameters(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "rank_pattern": {"experts.down_proj": 3, "layers.0.mlp.experts.down_proj": 1},
        "alpha_pattern": {"gate_up_proj": 5},
    }
    config = LoRAConfig(r=2, target_modules=[], target_parameters=PARAMETERS, **fields)
    model: Any = fill(apply_lora_to_model(tiny_model(**EXPERTS), config)).eval()
    ranks = {layer.r["default"] for layer in model.modules() if isinstance(layer, LoraLayer)}
    assert ranks == {2, 3}
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(**EXPERTS), tmp_path).eval()
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_layers_that_leave_no_parameter() -> None:
    config = LoRAConfig(r=2, target_modules=Q, target_parameters=PARAMETERS, exclude_modules=["experts"])
    with pytest.raises(UserError, match="match no parameter once layers and exclude_modules are taken out"):
        apply_lora_to_model(tiny_model(**EXPERTS), config)

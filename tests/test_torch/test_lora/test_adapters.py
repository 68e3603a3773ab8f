"""Adapters put on models and loaded into them, against PEFT's own."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from stellarbyte.errors import UserError
from stellarbyte_torch import ByteModel, LoRAConfig
from stellarbyte_torch.lora import apply_lora_to_model, load_lora
from test_torch.lora_models import MODELS, WIDTHS, Mixed, fill, gpt2, llama
from test_torch.tiny import tiny_model, tokens

CONFIGS: dict[str, dict[str, Any]] = {
    "promised": {"r": 8, "target_modules": ["q_proj", "v_proj"], "lora_alpha": 16, "lora_dropout": 0.05},
    "all_linear": {"r": 4, "target_modules": "all-linear"},
    "regular_expression": {"r": 4, "target_modules": r".*\.layers\.\d\.mlp\.(up|down)_proj"},
    "rslora": {"r": 4, "target_modules": ["q_proj"], "use_rslora": True},
    "dora": {"r": 4, "target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "embeddings": {"r": 4, "target_modules": ["embed_tokens", "o_proj"]},
    "patterns": {
        **{"r": 4, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}},
        **{"alpha_pattern": {"layers.1.self_attn.v_proj": 3}},
    },
}


def losses_and_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    ids = tokens(2, 11)
    torch.manual_seed(5)  # the dropout's
    output = model.train()(input_ids=ids, labels=ids)
    output.loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": output.loss, "logits": output.logits, **gradients}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients_are_pefts_to_the_bit(kind: str, name: str) -> None:
    torch.manual_seed(1)
    ours = fill(apply_lora_to_model(MODELS[kind](), LoRAConfig(**CONFIGS[name])))
    torch.manual_seed(1)
    theirs = fill(get_peft_model(MODELS[kind](), peft.LoraConfig(**CONFIGS[name], task_type="CAUSAL_LM")))
    actual, expected = losses_and_gradients(ours), losses_and_gradients(theirs)
    assert actual.keys() == expected.keys() and len(actual) > 4
    assert all(torch.equal(actual[key], expected[key]) for key in expected)


def test_the_untrained_adapter_changes_nothing_and_trains_alone() -> None:
    base = tiny_model()
    expected = base(input_ids=tokens(1, 9)).logits
    model = apply_lora_to_model(base, LoRAConfig(**CONFIGS["promised"])).eval()
    assert torch.equal(model(input_ids=tokens(1, 9)).logits, expected)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2 and all("lora_" in name for name in trained)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", [*CONFIGS, "trained_whole"])
def test_adapters_cross_in_both_directions(kind: str, name: str, tmp_path: Path) -> None:
    whole = {"r": 4, "target_modules": ["q_proj"], "train_norms": True, "train_head": True, "train_layers": [1]}
    ids = tokens(2, 9)
    ours = fill(apply_lora_to_model(MODELS[kind](), LoRAConfig(**CONFIGS.get(name, whole)))).eval()
    for key, parameter in ours.named_parameters():
        if "modules_to_save" in key:
            parameter.data += 0.1
    ours.save_pretrained(tmp_path / "ours")

    exported = tmp_path / "base"
    MODELS[kind]().save_pretrained(exported)
    theirs = PeftModel.from_pretrained(type(ours.get_base_model()).from_pretrained(exported).eval(), tmp_path / "ours")
    assert torch.equal(theirs(input_ids=ids).logits, ours(input_ids=ids).logits)

    theirs.save_pretrained(tmp_path / "theirs")
    back = load_lora(MODELS[kind](), tmp_path / "theirs")
    assert torch.equal(back(input_ids=ids).logits, ours(input_ids=ids).logits)
    assert not any(parameter.requires_grad for parameter in back.parameters())
    ours_saved = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    theirs_saved = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    assert ours_saved.keys() == theirs_saved.keys()
    fields = [json.loads((tmp_path / side / "adapter_config.json").read_text()) for side in ("ours", "theirs")]
    assert fields[0].keys() == fields[1].keys()


@pytest.mark.parametrize("num_shared_experts", [0, 1])
def test_experts_are_adapted_as_peft_does(num_shared_experts: int, tmp_path: Path) -> None:
    def moe() -> ByteModel:
        return tiny_model(num_experts=4, moe_intermediate_size=24, num_shared_experts=num_shared_experts)

    fields: dict[str, Any] = {
        "r": 2,
        "target_modules": ["q_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    }
    torch.manual_seed(1)
    ours = fill(apply_lora_to_model(moe(), LoRAConfig(**fields)))
    torch.manual_seed(1)
    theirs = fill(get_peft_model(moe(), peft.LoraConfig(**fields, task_type="CAUSAL_LM")))
    actual, expected = losses_and_gradients(ours), losses_and_gradients(theirs)
    assert actual.keys() == expected.keys() and any("experts" in key for key in actual)
    assert all(torch.equal(actual[key], expected[key]) for key in expected)

    ours.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(moe(), tmp_path).eval()
    ids = tokens(2, 9)
    assert torch.equal(loaded(input_ids=ids).logits, ours.eval()(input_ids=ids).logits)
    assert not torch.equal(loaded(input_ids=ids).logits, moe()(input_ids=ids).logits)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
@pytest.mark.parametrize("target", ["embedding", "convolution", "conv1d", "linear"])
def test_every_kind_of_layer_is_adapted_as_peft_does(target: str) -> None:
    results = []
    for apply, config in ((apply_lora_to_model, LoRAConfig), (get_peft_model, peft.LoraConfig)):
        torch.manual_seed(1)
        model = fill(apply(Mixed(), config(r=2, target_modules=[target])))
        output = model(tokens(2, 7))
        output.square().sum().backward()
        results.append([output, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_gpt2_by_its_default_targets() -> None:
    model = fill(apply_lora_to_model(gpt2(), LoRAConfig(r=2)))
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert len(adapted) == 2 and all(name.endswith("c_attn") for name in adapted)
    assert model.peft_config["default"].fan_in_fan_out


def test_a_plain_peft_config_is_taken_as_it_is() -> None:
    model = apply_lora_to_model(tiny_model(), peft.LoraConfig(r=3, target_modules=["k_proj"], use_rslora=True))
    assert isinstance(model.peft_config["default"], LoRAConfig)
    assert model.peft_config["default"].r == 3 and model.peft_config["default"].use_rslora


@pytest.mark.parametrize(
    ("changes", "differing"),
    [
        ({"hidden_size": 64}, r"q_proj\.lora_A\.weight is \[4, 32\] in the adapter, \[4, 64\] on this model"),
        ({"num_hidden_layers": 3}, r"this model needs .*layers\.2\..*, and the adapter lacks it"),
        (
            {"num_hidden_layers": 1},
            r"it has .*layers\.1\..*lora_[AB]\.weight, \[\d+, \d+\], and this model has no such",
        ),
    ],
)
@pytest.mark.parametrize("has_another", [False, True])
def test_an_adapter_of_another_base_is_refused(
    changes: dict[str, int], differing: str, has_another: bool, tmp_path: Path
) -> None:
    apply_lora_to_model(llama(), LoRAConfig(r=4, target_modules=["q_proj", "v_proj"])).save_pretrained(tmp_path)
    other = llama(**{**WIDTHS, **changes})
    if has_another:
        other = apply_lora_to_model(other, LoRAConfig(r=4, target_modules=["q_proj", "v_proj"]), "before")
    expected = other(input_ids=tokens(1, 5)).logits
    with pytest.raises(UserError, match=f"belongs to another base: .*{differing}"):
        load_lora(other, tmp_path, "second")
    assert torch.equal(other(input_ids=tokens(1, 5)).logits, expected)
    assert any(isinstance(module, LoraLayer) for module in other.modules()) == has_another
    if has_another:
        assert list(other.peft_config) == ["before"]


def test_a_whole_module_that_the_adapter_lacks_is_named(tmp_path: Path) -> None:
    model = apply_lora_to_model(tiny_model(), LoRAConfig(r=4, target_modules=["q_proj"], train_head=True))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    del weights["base_model.model.lm_head.weight"]
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"this model needs base_model.model.lm_head.weight, \[97, 32\]"):
        load_lora(tiny_model(), tmp_path)

"""What fails half-way leaves a model as it was, and can be tried again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model, load_lora
from stellarbyte_torch.lora.rollback import unchanged_on_failure
from test_torch.lora_models import bits, fill, is_unchanged
from test_torch.tiny import tiny_model, tokens

IDS = tokens(2, 9)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def shape_of(model: Any) -> list[tuple[str, str, bool]]:
    settings = [(name, str(type(module)), module.training) for name, module in model.named_modules()]
    return settings + [(name, str(p.dtype), p.requires_grad) for name, p in model.named_parameters()]


def test_everything_is_put_back() -> None:
    model = tiny_model()
    before, shape, expected = bits(model), shape_of(model), logits(model)
    calls: list[str] = []
    handle = model.register_forward_hook(lambda *_: calls.append("hook"))
    with pytest.raises(KeyboardInterrupt), unchanged_on_failure(model):  # noqa: PT012
        put_on = get_peft_model(model, LoRAConfig(r=2, target_modules="all-linear", train_head=False))
        put_on.train()
        model.model.norm.weight.data = model.model.norm.weight.data * 2
        model.register_forward_hook(lambda *_: calls.append("second hook"))
        raise KeyboardInterrupt
    assert shape_of(model) == shape and is_unchanged(model, before) and not hasattr(model, "peft_config")
    assert torch.equal(logits(model), expected) and calls == ["hook"]
    handle.remove()
    logits(model)
    assert calls == ["hook"]


FAILURES = {
    "velora on embeddings": {"target_modules": ["q_proj", "embed_tokens"], "velora_config": {"rank": 1}},
    "corda without its beginning": {"target_modules": ["v_proj"], "init_lora_weights": "corda"},
    "orthogonal of odd rank": {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "orthogonal", "r": 3},
    "norms": {"target_modules": ["q_proj", "input_layernorm"]},
    "dropout of parameters": {
        "target_modules": ["q_proj"], "target_parameters": ["q_norm.weight"], "lora_dropout": 0.5
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("has_another", [False, True])
def test_a_failed_start_is_undone(has_another: bool) -> None:
    model: Any = tiny_model(qk_norm=True)
    base, before = model, bits(model)
    if has_another:
        model = fill(apply_lora_to_model(model, LoRAConfig(r=2, target_modules=["q_proj"]))).eval()
    shape, expected = shape_of(model), logits(model)
    for name, fields in FAILURES.items():
        with pytest.raises(UserError) as refused:
            apply_lora_to_model(model, LoRAConfig(**fields), "other")
        assert "\n" not in str(refused.value), name
        assert shape_of(model) == shape and is_unchanged(base, before), name
        assert torch.equal(logits(model), expected), name
    apply_lora_to_model(model, LoRAConfig(r=2, target_modules=["q_proj"]), "other")


@pytest.mark.parametrize("damage", ["unknown", "missing", "whole", "bias", "base"])
def test_a_failed_load_is_undone_and_tried_again(damage: str, tmp_path: Path) -> None:
    config = LoRAConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    fill(apply_lora_to_model(tiny_model(), config)).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    whole = load_file(path)
    key = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
    weights = dict(whole)
    if damage == "unknown":
        weights[key.replace("q_proj", "x_proj")] = whole[key].clone()
    elif damage == "missing":
        del weights[key]
    elif damage == "whole":
        del weights["base_model.model.lm_head.weight"]
    else:
        place = "self_attn.q_proj.base_layer.weight" if damage == "base" else "self_attn.q_proj.base_layer.bias"
        shape = (32, 32) if damage == "base" else (32,)
        weights[f"base_model.model.model.layers.0.{place}"] = torch.ones(shape)
    save_file(weights, path)

    base = tiny_model(attention_bias=True) if damage == "bias" else tiny_model()
    before = bits(base)
    for model in (base, LoRAManager(base)):
        shape, expected = shape_of(base), logits(base)
        with pytest.raises(UserError, match=r"the adapter in .* (belongs to another base|brings other values for)"):
            model.register("x", tmp_path) if isinstance(model, LoRAManager) else load_lora(model, tmp_path)
        assert shape_of(base) == shape and is_unchanged(base, before) and torch.equal(logits(base), expected)
    manager = LoRAManager(base)
    manager.register("other", LoRAConfig(r=2, target_modules=["v_proj"]))
    shape = shape_of(manager.model)
    with pytest.raises(UserError):
        manager.register("x", tmp_path)
    assert manager.names == ["other"] and shape_of(manager.model) == shape
    save_file(whole, path)
    if damage != "bias":
        manager.register("x", tmp_path)
        manager.activate("x")
        logits(manager.model)
        manager.deactivate()
        assert is_unchanged(base, before)


def test_a_folder_s_config_of_another_rank_is_found_before_anything_is_made(tmp_path: Path) -> None:
    fill(apply_lora_to_model(tiny_model(), LoRAConfig(r=2, target_modules=["q_proj"]))).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text())
    for rank, sentence in (
        (60_000, "r is 60000, and no tensor of the adapter is wider than 32"),
        (10**12, "r is 10000"),
    ):
        path.write_text(json.dumps(fields | {"r": rank}))
        with pytest.raises(UserError, match=sentence):
            load_lora(tiny_model(), tmp_path)

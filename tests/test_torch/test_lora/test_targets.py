"""Which modules a config reaches: by name, expression, layer, and whole."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import apply_lora_to_model, merge_and_save
from test_torch.lora_models import fill, gpt2
from test_torch.tiny import tiny_model, tokens


def adapted(model: PeftModel) -> set[str]:
    modules = model.get_base_model().named_modules()
    return {name.removeprefix("model.layers.") for name, module in modules if isinstance(module, LoraLayer)}


def whole(model: PeftModel) -> set[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name]
    return {name.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for name in names}


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target_modules": ["q_proj"], "layers": "2"}, {"2.self_attn.q_proj"}),
        ({"target_modules": ["self_attn.q_proj", "model.layers.0.mlp.up_proj"], "layers": [0]},
         {"0.self_attn.q_proj", "0.mlp.up_proj"}),
        ({"target_modules": r".*\.(q|k)_proj", "layers": "0,2"},
         {f"{layer}.self_attn.{name}_proj" for layer in (0, 2) for name in "qk"}),
        ({"target_modules": "all-linear", "layers": "1"},
         {f"1.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}" for name in LINEAR}),
        ({"target_modules": "all-linear", "layers": "1", "exclude_modules": ["mlp.gate_proj", "q_proj", "o_proj"]},
         {"1.mlp.up_proj", "1.mlp.down_proj", "1.self_attn.k_proj", "1.self_attn.v_proj"}),
        ({"target_modules": r".*_proj", "layers": [0], "exclude_modules": r".*\.mlp\..*"},
         {f"0.self_attn.{name}_proj" for name in "qkvo"}),
        ({"target_modules": ["q_proj", "v_proj"], "train_layers": "1-2"}, {"0.self_attn.q_proj", "0.self_attn.v_proj"}),
    ],
)  # fmt: skip
def test_targets_and_layers(fields: dict[str, Any], expected: set[str]) -> None:
    model = apply_lora_to_model(tiny_model(num_hidden_layers=3), LoRAConfig(r=2, **fields))
    assert adapted(model) == expected


def test_eleven_layers_are_told_apart() -> None:
    model = tiny_model(num_hidden_layers=11)
    assert adapted(apply_lora_to_model(model, LoRAConfig(r=2, target_modules=".*q_proj", layers="1"))) == {
        "1.self_attn.q_proj"
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"train_embeddings": True}, {"model.embed_tokens.weight"}),
        ({"train_head": True}, {"lm_head.weight"}),
        ({"train_norms": True}, {"model.norm.weight"} | {
            f"model.layers.{layer}.{name}.weight" for layer in (0, 1) for name in (
                "input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")}),
        ({"train_layers": [1], "modules_to_save": ["lm_head"]}, {"lm_head.weight"} | {
            f"model.layers.1.{name}.weight" for name in (
                "input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm",
                *(f"self_attn.{letter}_proj" for letter in "qkvo"),
                *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))}),
    ],
)  # fmt: skip
def test_what_trains_whole(fields: dict[str, Any], expected: set[str]) -> None:
    base = tiny_model(qk_norm=True)
    frozen = base(input_ids=tokens(1, 7)).logits
    model = apply_lora_to_model(base, LoRAConfig(r=2, target_modules=["q_proj"], **fields))
    assert whole(model) == expected
    output = model(input_ids=tokens(1, 7), labels=tokens(1, 7))
    assert torch.equal(output.logits, frozen)
    output.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data += 1.0
    with model.disable_adapter():
        assert torch.equal(model(input_ids=tokens(1, 7)).logits, frozen)


def test_experts_of_a_layer_train_whole() -> None:
    model = tiny_model(num_experts=4, moe_intermediate_size=24)
    model = apply_lora_to_model(model, LoRAConfig(r=2, target_modules=["q_proj"], train_layers="0"))
    assert {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.gate.weight"} <= whole(model)
    model(input_ids=tokens(1, 7), labels=tokens(1, 7)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("field", ["train_embeddings", "train_head"])
def test_tied_embeddings_stay_tied_while_they_train(field: str, tmp_path: Any) -> None:
    model = tiny_model(tie_word_embeddings=True)
    model = fill(apply_lora_to_model(model, LoRAConfig(r=2, target_modules=["q_proj"], **{field: True})))
    trained = [p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name]
    assert len(trained) == 1
    trained[0].data += 0.1
    ids = tokens(1, 7)
    expected = model.eval()(input_ids=ids).logits
    merge_and_save(model, tmp_path)
    merged = type(model.get_base_model()).from_pretrained(tmp_path).eval()
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"target_modules": ["q_porj"]}, "target_modules has 'q_porj', which matches no module: the model has "
         "down_proj, embed_tokens, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"),
        ({"target_modules": ["q_proj", "query"]}, "target_modules has 'query', which matches no module"),
        ({"target_modules": ".*query"}, r"target_modules '\.\*query' matches no module: the model has down_proj"),
        ({"target_modules": ["q_proj"], "layers": "1-2"}, "layers names layer 2, and the model has layers 0 to 1"),
        ({"target_modules": ["q_proj"], "train_layers": "7"}, "train_layers names layer 7, and the model has layers"),
        ({"target_modules": ["q_proj"], "exclude_modules": ["self_attn.q_proj"]}, "match no module once layers"),
        ({}, "target_modules is not set, and this model has no default: choose from down_proj"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters has 'experts.down_proj', which matches"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused_and_what_is_there_is_told(fields: dict[str, Any], sentence: str) -> None:
    model = tiny_model()
    with pytest.raises(UserError, match=sentence):
        apply_lora_to_model(model, LoRAConfig(**fields))
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


def test_stacked_parameters_are_told() -> None:
    model = tiny_model(num_experts=4, moe_intermediate_size=24)
    with pytest.raises(UserError, match=r"the model's stacked ones are experts\.down_proj, experts\.gate_up_proj"):
        apply_lora_to_model(model, LoRAConfig(target_parameters=["experts.up_proj"]))


def test_other_models_layers_are_numbered_too() -> None:
    model = apply_lora_to_model(gpt2(), LoRAConfig(r=2, target_modules=["c_attn"], layers="1", train_norms=True))
    names = adapted(model)
    assert names == {"transformer.h.1.attn.c_attn"}
    assert "transformer.ln_f.weight" in whole(model)

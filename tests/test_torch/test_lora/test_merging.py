"""Merging in float32, plain folders, and the drift of rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model, load_lora, merge_and_save
from test_torch.lora_models import MODELS, Mixed, bits, fill, gpt2, is_unchanged
from test_torch.tiny import POSITIONS, SWITCHES, relative_error, tiny_model, tokens

IDS = tokens(2, 9)
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SHAPES: dict[str, dict[str, Any]] = {
    "xpos_learnable": POSITIONS["xpos_learnable"],
    **{name: SWITCHES[name] for name in ("attention_bias", "deepnorm", "layer_scale", "pruned", "shared_experts")},
    "tied": {"tie_word_embeddings": True},
}


def check_folder(model: Any, folder: Path) -> None:
    expected = model(input_ids=IDS).logits
    before = bits(model)
    drift = merge_and_save(model, folder)
    assert drift.share == 0.0 == drift.largest and "float32" in str(drift)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert torch.equal(model(input_ids=IDS).logits, expected)

    assert not list(folder.glob("adapter*"))
    plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not any("lora" in name for name, _ in plain.named_parameters())
    assert relative_error(plain.eval()(input_ids=IDS).logits, expected) < 1e-5


@pytest.mark.parametrize("name", SHAPES)
def test_a_plain_folder_of_every_shape(name: str, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "use_rslora": True}
    if "experts" in name:
        fields = {"r": 2, "target_modules": ["v_proj"], "target_parameters": EXPERTS}
    check_folder(fill(apply_lora_to_model(tiny_model(**SHAPES[name]), LoRAConfig(**fields))).eval(), tmp_path)


@pytest.mark.parametrize("fields", [{"use_dora": True}, {"rank_pattern": {"q_proj": 2}}, {"train_norms": True}])
@pytest.mark.parametrize("kind", MODELS)
def test_a_plain_folder_of_every_adapter(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    config = LoRAConfig(r=4, target_modules=["q_proj", "down_proj", "embed_tokens"], **fields)
    model = fill(apply_lora_to_model(MODELS[kind](), config)).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            parameter.data *= 1.5
    check_folder(model, tmp_path)


def test_conv1d_weights_merge_transposed(tmp_path: Path) -> None:
    check_folder(fill(apply_lora_to_model(gpt2(), LoRAConfig(r=4))).eval(), tmp_path)


@pytest.mark.parametrize(("factor", "dtype"), [(1e30, torch.float32), (1e4, torch.float16)])
def test_a_merge_beyond_its_dtype_is_refused_and_undone(factor: float, dtype: torch.dtype, tmp_path: Path) -> None:
    model = fill(apply_lora_to_model(tiny_model(), LoRAConfig(r=4, target_modules=["q_proj", "v_proj"]))).eval()
    for key in ("lora_A", "lora_B"):
        getattr(model.get_base_model().model.layers[1].self_attn.v_proj, key)["default"].weight.data *= factor
    before = bits(model)
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=rf"^merged, model\.layers\.1\.self_attn\.v_proj holds .* {kind} cannot hold"):
        merge_and_save(model, tmp_path / "merged", dtype)
    assert not (tmp_path / "merged").exists()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert not any(layer.merged_adapters for layer in model.modules() if hasattr(layer, "merged_adapters"))


def test_a_base_beyond_the_dtype_of_the_merge_is_refused(tmp_path: Path) -> None:
    model = fill(apply_lora_to_model(tiny_model(), LoRAConfig(r=4, target_modules=["q_proj"]))).eval()
    model.get_base_model().model.norm.weight.data[3] = 1e5
    with pytest.raises(UserError, match=r"model\.norm\.weight holds numbers that float16 cannot hold as finite ones"):
        merge_and_save(model, tmp_path / "merged", torch.float16)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("adapter_dtype", [torch.float32, torch.bfloat16])
def test_a_merge_is_computed_in_float32_and_rounded_once(adapter_dtype: torch.dtype) -> None:
    base = tiny_model().bfloat16()
    original = base.model.layers[0].self_attn.q_proj.weight.detach().clone()
    fields = LoRAConfig(r=4, target_modules=["q_proj"], lora_alpha=5)
    model = fill(get_peft_model(base, fields, autocast_adapter_dtype=adapter_dtype == torch.float32))
    layer = base.model.layers[0].self_attn.q_proj
    A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert A.dtype == B.dtype == adapter_dtype
    exact = original.float() + 5 / 4 * (B.float() @ A.float())

    manager = LoRAManager(model)
    drift = manager.merge()
    assert layer.base_layer.weight.dtype == torch.bfloat16
    # One unit in the last place where float32's own rounding falls on a tie.
    torch.testing.assert_close(layer.base_layer.weight, exact.bfloat16(), rtol=2**-8, atol=0)
    assert (layer.base_layer.weight == exact.bfloat16()).float().mean() > 0.999
    assert drift.dtype == torch.bfloat16 and drift.modules == 2
    assert A.dtype == adapter_dtype and layer.lora_A["default"].weight is A


def test_the_drift_is_what_rounding_costs(tmp_path: Path) -> None:
    base = tiny_model()
    weights = {n: m.weight.detach().clone() for n, m in base.named_modules() if n.endswith(("q_proj", "v_proj"))}
    model = fill(apply_lora_to_model(base, LoRAConfig(r=4, target_modules=["q_proj", "v_proj"]))).eval()
    drift = merge_and_save(model, tmp_path, dtype=torch.bfloat16)
    errors, updates = [], []
    for name, weight in weights.items():
        update = base.get_submodule(name).get_delta_weight("default").detach()
        errors.append(((weight + update).bfloat16().float() - (weight + update)).flatten())
        updates.append(update.flatten())
    assert drift.largest == pytest.approx(torch.cat(errors).abs().max().item())
    assert drift.share == pytest.approx((torch.cat(errors).norm() / torch.cat(updates).norm()).item(), rel=1e-4)
    assert f"{drift.share:.2%} of the adapter's update" in str(drift) and "bfloat16" in str(drift)

    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.bfloat16}
    assert base.dtype == torch.float32 and base.config.dtype != torch.bfloat16


def test_a_manager_saves_beside_and_over_a_merge(tmp_path: Path) -> None:
    base = tiny_model()
    before = bits(base)
    manager = LoRAManager(base)
    for seed, name in enumerate(("one", "two")):
        manager.register(name, LoRAConfig(r=4, target_modules=["q_proj", "up_proj"]))
        fill(manager.model, name, seed)
    manager.activate({"one": 0.5, "two": -1.0})
    expected = manager.model(input_ids=IDS).logits
    for folder in ("beside", "over"):
        manager.merge_and_save(tmp_path / folder)
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / folder).eval()
        assert relative_error(plain(input_ids=IDS).logits, expected) < 1e-5
        if not manager.is_merged:
            manager.merge()
    assert manager.is_merged
    manager.unmerge()
    assert is_unchanged(base, before)


def test_what_cannot_merge_is_refused(tmp_path: Path) -> None:
    tied = apply_lora_to_model(
        tiny_model(tie_word_embeddings=True), LoRAConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True)
    )
    with pytest.raises(UserError, match=r"embeddings are the head as well \(tie_word_embeddings\)"):
        merge_and_save(tied, tmp_path)
    model = apply_lora_to_model(tiny_model(), LoRAConfig(r=2, target_modules=["q_proj"]))
    model.merge_adapter()
    with pytest.raises(UserError, match=r"adapters \['default'\] are merged already: unmerge first"):
        merge_and_save(model, tmp_path)
    with pytest.raises(UserError, match="Mixed is no transformers model"):
        merge_and_save(apply_lora_to_model(Mixed(), LoRAConfig(r=2, target_modules=["linear"])), tmp_path)
    tokens_too = apply_lora_to_model(
        tiny_model(), LoRAConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[5])
    )
    with pytest.raises(UserError, match="has trainable_token_indices, which PEFT alone merges"):
        merge_and_save(tokens_too, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_int8_base_trains_and_does_not_merge(tmp_path: Path) -> None:
    torchao = pytest.importorskip("torchao.quantization")
    base = tiny_model()
    exact = base(input_ids=IDS).logits
    torchao.quantize_(
        base, torchao.Int8WeightOnlyConfig(), filter_fn=lambda module, name: isinstance(module, torch.nn.Linear)
        and "lm_head" not in name
    )  # fmt: skip
    model = apply_lora_to_model(base, LoRAConfig(r=4, target_modules="all-linear"))
    assert 0 < relative_error(model(input_ids=IDS).logits, exact) < 0.2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    with pytest.raises(UserError, match="the base is quantised"):
        merge_and_save(model, tmp_path)


TIED: dict[str, dict[str, Any]] = {
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "embeddings, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "norms": {"modules_to_save": ["input_layernorm", "model.norm"]},
    "a whole block": {"modules_to_save": ["layers.1.mlp"]},
    "biases": {"bias": "all"},
    "adapted biases": {"bias": "lora_only"},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", TIED)
def test_what_trains_whole_on_a_tied_model_survives_a_merge(kind: str, name: str, tmp_path: Path) -> None:
    base = MODELS[kind](tie_word_embeddings=True, attention_bias=True)
    base.save_pretrained(tmp_path / "base")
    model = fill(apply_lora_to_model(base, LoRAConfig(r=2, target_modules=["q_proj"], **TIED[name]))).eval()
    for number, (key, parameter) in enumerate(model.named_parameters()):
        if parameter.requires_grad and "lora_" not in key:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path / "adapter")
    stock = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.equal(stock(input_ids=IDS).logits, expected)
    # The adapter that has just been trained, and one that comes from its folder.
    for number, trained in enumerate(
        (model, load_lora(type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter"))
    ):
        folder = tmp_path / f"merged{number}"
        merge_and_save(trained, folder)
        plain, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert relative_error(plain.eval()(input_ids=IDS).logits, expected) < 1e-5
        is_untied = name in ("head", "embeddings", "both")
        assert plain.config.tie_word_embeddings == (not is_untied)
        assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == (not is_untied)
    assert base.config.tie_word_embeddings and torch.equal(model(input_ids=IDS).logits, expected)

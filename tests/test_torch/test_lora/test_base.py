"""The base below adapters: never changed for others, and known again when an adapter is loaded."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from stellarbyte.adapter_base import BASE_FILE, AdapterWarning
from stellarbyte.errors import UserError
from stellarbyte_torch import LoRAConfig
from stellarbyte_torch.lora import LoRAManager, apply_lora_to_model, load_lora
from test_torch.lora_models import MODELS, bits, fill, is_unchanged, llama
from test_torch.tiny import tiny_model, tokens

IDS = tokens(2, 9)
HARMLESS = (True, False, "gaussian", "orthogonal", "eva", "mica")
MOVING = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", MODELS)
def test_no_way_to_begin_changes_the_base_for_others(kind: str) -> None:
    base = MODELS[kind]()
    expected, before = logits(base), bits(base)
    manager = LoRAManager(base)
    manager.register("first", LoRAConfig(r=2, target_modules=["v_proj"]))
    fill(manager.model, "first")
    manager.activate("first")
    of_first = logits(manager.model)
    for number, start in enumerate(HARMLESS):
        manager.register(f"a{number}", LoRAConfig(r=2, target_modules=["q_proj"], init_lora_weights=start))
        assert torch.equal(logits(manager.model), of_first)
        manager.activate(f"a{number}")
        logits(manager.model)
        manager.activate("first")
        assert torch.equal(logits(manager.model), of_first)
    changing: list[dict[str, Any]] = [
        *({"init_lora_weights": start} for start in MOVING),
        {"bias": "all"},
        {"bias": "lora_only"},
        {"layer_replication": [(0, 1), (0, 2)]},
        {"kasa_config": {}},
    ]
    for fields in changing:
        (name, value), *_ = fields.items()
        for config in (LoRAConfig, peft.LoraConfig):
            if config is peft.LoraConfig and name == "kasa_config":
                continue
            with pytest.raises(UserError, match=rf"^{name}.*which all adapters of a model share") as refused:
                manager.register("other", config(r=2, target_modules=["q_proj"], **fields))
            assert str(value) in str(refused.value) or name == "layer_replication" or name == "kasa_config"
        with pytest.raises(UserError, match="which all adapters of a model share"):
            apply_lora_to_model(manager.model, LoRAConfig(r=2, target_modules=["q_proj"], **fields), "other")
        assert torch.equal(logits(manager.model), of_first)
    assert manager.names == ["first", *(f"a{number}" for number in range(len(HARMLESS)))]
    manager.deactivate()
    assert torch.equal(logits(manager.model), expected) and is_unchanged(base, before)


@pytest.mark.parametrize("start", ["pissa", "olora", "pissa_niter_4"])
def test_a_stock_adapter_that_moved_the_base_loads_alone_and_never_beside_others(start: str, tmp_path: Path) -> None:
    stock = peft.get_peft_model(tiny_model(), peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=start))
    fill(stock)
    stock.save_pretrained(tmp_path)
    base = tiny_model()
    expected, before = logits(base), bits(base)
    manager = LoRAManager(base)
    with pytest.raises(UserError, match="which all adapters of a model share"):
        manager.register("moved", tmp_path)
    assert manager.names == [] and manager.model is base and is_unchanged(base, before)
    assert torch.equal(logits(base), expected)
    if start == "pissa_niter_4":
        with pytest.raises(UserError, match="draws at random what it takes from the base"):
            load_lora(base, tmp_path)
        assert is_unchanged(base, before)
        return
    loaded = load_lora(base, tmp_path)
    torch.testing.assert_close(logits(loaded), logits(stock), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="which all adapters of a model share"):
        LoRAManager(loaded)


def adapter(folder: Path, **changes: Any) -> Path:
    model = llama(**changes)
    fill(apply_lora_to_model(model, LoRAConfig(r=2, target_modules=["q_proj", "v_proj"]))).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rms_norm_eps": 1e-2}, "rms_norm_eps is 0.01, and this model's is 1e-06"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}}, "rope_parameters is"),
        ({"num_key_value_heads": 1, "head_dim": 16, "num_attention_heads": 2}, "is for another base: its"),
    ],
)
def test_an_adapter_of_another_architecture_with_equal_shapes(changes: Any, field: str, tmp_path: Path) -> None:
    adapter(tmp_path, **changes)
    base = llama()
    before = bits(base)
    with pytest.raises(UserError, match="is for another base: its ") as refused:
        load_lora(base, tmp_path)
    assert field in str(refused.value)
    assert is_unchanged(base, before) and not any("lora" in name for name, _ in base.named_parameters())


def test_a_byte_model_s_adapter_is_none_for_a_llama(tmp_path: Path) -> None:
    fill(apply_lora_to_model(tiny_model(), LoRAConfig(r=2, target_modules=["q_proj"]))).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its model_type is 'stellarbyte', and this model's is 'llama'"):
        load_lora(llama(), tmp_path)
    assert json.loads((tmp_path / BASE_FILE).read_text())["config"]["model_type"] == "stellarbyte"
    peft.PeftModel.from_pretrained(llama(), tmp_path)  # which passes the file over


def test_what_may_differ_where_an_adapter_is_used(tmp_path: Path) -> None:
    adapter(tmp_path)
    others = [
        llama(),
        llama().bfloat16(),
        llama(attention_dropout=0.1),
        llama(max_position_embeddings=4096, use_cache=False),
        llama(bos_token_id=5, pad_token_id=7),
    ]
    others[0].config.transformers_version = "9.9"
    resized = llama()
    resized.resize_token_embeddings(120)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdapterWarning)
        for base in (*others, resized):
            load_lora(base, tmp_path)


def test_other_weights_are_told(tmp_path: Path) -> None:
    adapter(tmp_path)
    base = llama()
    base.model.embed_tokens.weight.data *= 1.5
    with pytest.warns(AdapterWarning, match="was trained on other weights than this model has"):
        load_lora(base, tmp_path)


def test_a_stock_adapter_is_checked_by_what_its_config_tells(tmp_path: Path) -> None:
    there = tmp_path / "base"
    llama(rms_norm_eps=1e-2).save_pretrained(there)
    model = peft.get_peft_model(type(llama()).from_pretrained(there), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / BASE_FILE).exists()
    with pytest.raises(UserError, match=r"its rms_norm_eps is 0.01, and this model's is 1e-06"):
        load_lora(llama(), tmp_path / "adapter")
    shutil.rmtree(there)
    with pytest.warns(
        AdapterWarning, match=r"says that it is for .*base', which is not here, and this model is nameless"
    ):
        load_lora(llama(), tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    fields = json.loads(config.read_text())
    config.write_text(json.dumps(fields | {"base_model_name_or_path": None, "revision": "v2"}))
    with pytest.warns(AdapterWarning) as told:
        load_lora(llama(), tmp_path / "adapter")
    sentences = [str(warning.message) for warning in told]
    assert any("does not say what base it is for" in sentence for sentence in sentences)
    assert any("is for revision 'v2' of its base, which could not be checked" in sentence for sentence in sentences)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"config": {}, "embeddings": [null]}', "\xff"])
def test_a_broken_file_is_one_sentence(text: str, tmp_path: Path) -> None:
    adapter(tmp_path)
    (tmp_path / BASE_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=BASE_FILE):
        load_lora(llama(), tmp_path)

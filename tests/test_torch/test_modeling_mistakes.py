"""What is passed, loaded or initialised in a wrong or unusual way is right all the same, or refused by name."""

import copy
import json
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoModelForCausalLM, DynamicCache, LlamaForCausalLM, MistralForCausalLM

from stellarbyte_torch import ByteForCausalLM

from .tiny import POSITIONS, SWITCHES, relative_error, tiny_model, tokens


@pytest.mark.parametrize("module", ["ByteForCausalLM", "ByteDecoder", "ByteAttention"])
def test_unknown_keywords_are_refused_by_name(module: str) -> None:
    model = tiny_model()
    known = {"seq_idx": None, "num_items_in_batch": None, "cu_seq_lens_q": None, "output_attentions": False}
    model(tokens(1, 5), **known)
    called = {
        "ByteForCausalLM": lambda: model(tokens(1, 5), nonsense=1),
        "ByteDecoder": lambda: model.model(tokens(1, 5), nonsense=1),
        "ByteAttention": lambda: model.model.layers[0].self_attn(torch.zeros(1, 5, 32), nonsense=1),
    }[module]
    with pytest.raises(TypeError, match=rf"{module}\.forward\(\) got an unexpected keyword argument 'nonsense'"):
        called()


def test_two_names_of_one_cache() -> None:
    model = tiny_model()
    ids = tokens(1, 6)
    expected = model(ids).logits[:, -1]
    for name in ("past_key_values", "cache"):
        cache = DynamicCache(config=model.config)
        model(ids[:, :5], **{name: cache})
        torch.testing.assert_close(model(ids[:, 5:], **{name: cache}).logits[:, -1], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="two names of one thing"):
        model(ids, past_key_values=DynamicCache(), cache=DynamicCache())


@pytest.mark.parametrize("name", ["xpos", "xpos_learnable", "yarn", "pruned"])
def test_memory_that_was_empty_is_whole_once_the_weights_are_loaded(name: str) -> None:
    switches = {**POSITIONS, **SWITCHES}[name]
    model = tiny_model(**switches)
    with torch.device("meta"):
        empty = ByteForCausalLM(model.config)
    for other in (empty.to_empty(device="cpu"), copy.deepcopy(model).to_empty(device="cpu")):
        other.load_state_dict(model.state_dict())
        ids = tokens(2, 9)
        assert torch.equal(other.eval()(ids).logits, model(ids).logits)


def test_a_learnt_zeta_outlives_another_initialisation(tmp_path) -> None:
    model = tiny_model(xpos_learnable=True)
    learnt = torch.tensor([0.4, 0.5, 0.6, 0.7])
    with torch.no_grad():
        model.model.rotary_emb.zeta.copy_(learnt)
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = ByteForCausalLM(model.config).to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    for other in (model, ByteForCausalLM.from_pretrained(tmp_path), empty):
        other.init_weights()
        other._init_weights(other.model.rotary_emb)
        other.post_init()
        assert torch.equal(other.model.rotary_emb.zeta, learnt)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_masks_of_pairs_are_obeyed(attention: str) -> None:
    model = tiny_model(attention)
    ids = tokens(2, 8)
    seen = torch.ones(8, 8, dtype=torch.bool).tril() & (torch.arange(8) != 2)[None]
    seen = seen.fill_diagonal_(True)[None, None].expand(2, 1, 8, 8)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    expected = tiny_model("sdpa")(ids, attention_mask=seen).logits
    assert relative_error(tiny_model("sdpa")(ids).logits, expected) > 0.01
    for mask in (seen, added):
        assert relative_error(model(ids, attention_mask=mask).logits, expected) < 1e-5
    with pytest.raises(ValueError, match="give bool, True where seen, or floats to add"):
        model(ids, attention_mask=seen.int())
    with pytest.raises(ValueError, match=r"flex_attention follows no attention_mask \[B, 1, T, S\]"):
        tiny_model("flex_attention")(ids, attention_mask=seen)


@pytest.mark.parametrize("stock", [LlamaForCausalLM, MistralForCausalLM])
@pytest.mark.parametrize("name", ["xpos", "xpos_learnable", "none", "window", "layer_scale"])
def test_stock_models_refuse_what_they_would_compute_otherwise(name: str, stock: Any, tmp_path) -> None:
    """By their own class, or because somebody edits model_type; with rotary positions Mistral is right on windows."""
    switches = {**POSITIONS, **SWITCHES, "window": {"sliding_window": 5, "position_embedding": "rope"}}[name]
    model = tiny_model(**switches)
    model.save_pretrained(tmp_path)
    if (name, stock) == ("window", MistralForCausalLM):
        assert torch.equal(stock.from_pretrained(tmp_path)(tokens(1, 9)).logits, model(tokens(1, 9)).logits)
        return
    complaint = "no Llama, because of|xpos|none"
    with pytest.raises((KeyError, StrictDataclassFieldValidationError), match=complaint):
        stock.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_type"] = stock.config_class.model_type
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((KeyError, StrictDataclassFieldValidationError), match=complaint):
        AutoModelForCausalLM.from_pretrained(tmp_path)

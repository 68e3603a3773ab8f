"""Transformers' own models with a pruned cache."""

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from stellarbyte.errors import UserError
from stellarbyte_torch.kv_cache import PrunedCache
from stellarbyte_torch.kv_cache.stock import IMPLEMENTATION, MODEL_TYPES
from stellarbyte_torch.modeling_stellarbyte import CACHE
from test_torch.test_kv_cache.test_cache import every_policy, kept, left_padded, read
from test_torch.tiny import tiny_model, tokens

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=40),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=3, num_experts_per_tok=2),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8),
    "qwen3_moe": Qwen3MoeConfig(**SHAPE, head_dim=8, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=16),
}


def stock_model(kind: str, attention: str = IMPLEMENTATION) -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    model.generation_config.pad_token_id = 2
    return model


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_budget_for_all_tokens_changes_no_bit(kind: str) -> None:
    model, (ids, mask) = stock_model(kind), left_padded(20, 4)
    expected = read(stock_model(kind, "sdpa"), DynamicCache(), ids, 14, mask)
    for policy in ("snap", "heavy"):
        actual = read(model, PrunedCache(model, 20, policy), ids, 14, mask)
        assert torch.equal(actual[mask.bool()], expected[mask.bool()])
    assert torch.equal(read(model, DynamicCache(), ids, 14, mask)[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("kind", MODEL_TYPES)
@torch.no_grad()
def test_keys_are_told_the_attention_that_they_get(kind: str) -> None:
    model, ids = stock_model(kind), tokens(2, 30)
    cache = PrunedCache(model, 30, "heavy")
    read(model, cache, ids, 26)
    attentions = stock_model(kind, "eager")(ids, output_attentions=True).attentions
    for layer, weights_BNTS in zip(cache.layers, attentions, strict=True):
        expected_BKS = weights_BNTS.unflatten(1, (2, 2)).mean(dim=2).sum(dim=2)
        layer.add_up()
        torch.testing.assert_close(layer.slots.attention_BKC, expected_BKS)


@every_policy
def test_a_llama_keeps_what_our_model_of_its_weights_keeps(policy: str) -> None:
    llama = stock_model("llama")
    fields = {name: getattr(llama.config, name) for name in (*SHAPE, "rms_norm_eps", "max_position_embeddings")}
    ours = tiny_model(**fields, head_dim=8, position_embedding="rope")
    ours.load_state_dict(llama.state_dict())
    ids, mask = left_padded(50, 9)
    caches = [PrunedCache(model, 20, policy) for model in (llama, ours)]
    logits = [read(model, cache, ids, 36, mask) for model, cache in zip((llama, ours), caches, strict=True)]
    torch.testing.assert_close(*(each[mask.bool()] for each in logits))
    assert all(map(torch.equal, *map(kept, caches)))
    assert max(held.shape[-1] for held in kept(caches[0])) <= 20


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_generates_with_beams_and_an_assistant(kind: str) -> None:
    model, ids = stock_model(kind), tokens(1, 30)
    common = {"max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
    for ways in ({"num_beams": 2}, {"prompt_lookup_num_tokens": 3}):
        expected = model.generate(ids, **common, **ways)
        for budget in (40, 16):
            cache = PrunedCache(model, budget, "snap")
            answer = model.generate(ids, **{CACHE: cache}, **common, **ways)
            assert budget == 16 or torch.equal(answer, expected)
            assert max(layer.slots.used for layer in cache.layers) <= budget


@torch.no_grad()
def test_what_leaves_a_cache_no_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"implementation sdpa of .* type llama .*set_attn_implementation\('pruned_sd"):
        PrunedCache(stock_model("llama", "sdpa"), 16)
    with pytest.raises(UserError, match=r"type gpt2 is not known to let it do: .* stellarbyte, llama, mistral"):
        PrunedCache(AutoModelForCausalLM.from_config(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=97)), 16)
    model, ids = stock_model("llama"), tokens(1, 20)
    cache = PrunedCache(model, 16)
    model.set_attn_implementation("sdpa")
    model(ids, **{CACHE: cache})
    with pytest.raises(
        UserError, match=r"left out a pruned cache: call model.set_attn_implementation\('pruned_sdpa'\)"
    ):
        model(ids, **{CACHE: cache})

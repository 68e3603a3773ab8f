"""Heads that are pruned: as if their part of o_proj were zero, in a model that is smaller."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from stellarbyte_torch import ByteForCausalLM

from .tiny import relative_error, tiny_model, tokens

# 4 query heads, 2 key/value heads: {0, 1} read the first, {2, 3} the second.
PRUNED: dict[str, dict[int, list[int]]] = {
    "unequal groups": {0: [1]},
    "a whole group": {1: [2, 3]},
    "equal groups": {0: [0, 3]},
    "every layer another way": {0: [3, 0, 1], 1: [2]},
}
SHAPES = {"unequal groups": (3, 2), "a whole group": (2, 1), "equal groups": (2, 2), "every layer another way": (1, 1)}


def zeroed(model: ByteForCausalLM, heads: dict[int, list[int]]) -> ByteForCausalLM:
    """The same model with what these heads write set to 0."""
    model = copy.deepcopy(model)
    for layer, gone in heads.items():
        for head in gone:
            start = head * model.config.head_dim
            model.model.layers[layer].self_attn.o_proj.weight.data[:, start : start + model.config.head_dim] = 0
    return model


def jolted(attention: str = "sdpa", **changes: Any) -> ByteForCausalLM:
    model = tiny_model(attention, attention_bias=True, qk_norm=True, **changes)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", PRUNED)
@torch.no_grad()
def test_pruned_equals_zeroed(name: str, attention: str, tmp_path) -> None:
    model = jolted(attention)
    ids = tokens(2, 12)
    expected = zeroed(model, PRUNED[name])(ids).logits
    assert relative_error(model(ids).logits, expected) > 1e-2
    model.prune_heads(PRUNED[name])
    assert relative_error(model(ids).logits, expected) < 1e-5

    layer = next(iter(PRUNED[name]))
    attention_layer = model.model.layers[layer].self_attn
    query_heads, kv_heads = SHAPES[name]
    for projection, heads in (("q_proj", query_heads), ("k_proj", kv_heads), ("v_proj", kv_heads)):
        projection = getattr(attention_layer, projection)
        assert projection.weight.shape == (heads * 8, 32) == (projection.out_features, projection.in_features)
        assert projection.bias.shape == (heads * 8,)
    assert attention_layer.o_proj.weight.shape == (32, query_heads * 8)
    # Groups of one size stay on the ordinary path.
    assert attention_layer.is_regular == (name != "unequal groups")

    model.save_pretrained(tmp_path)
    loaded = ByteForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert loaded.config.pruned_heads == [list(gone) for gone in model.config.pruned_heads]
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PRUNED)
@pytest.mark.parametrize("kind", ["dynamic", "static"])
@torch.no_grad()
def test_caches_hold_the_heads_of_each_layer(name: str, kind: str) -> None:
    model = jolted()
    model.prune_heads(PRUNED[name])
    ids = tokens(2, 12)
    full = model(ids, use_cache=False).logits
    cache = (
        StaticCache(config=model.config, max_cache_len=14) if kind == "static" else DynamicCache(config=model.config)
    )
    pieces = [model(ids[:, :5], past_key_values=cache).logits]
    pieces += [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(5, 12)]
    assert relative_error(torch.cat(pieces, dim=1), full) < 1e-5
    for layer, cached in zip(model.model.layers, cache.layers, strict=True):
        assert cached.keys.shape[1] == layer.self_attn.k_proj.out_features // 8
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, model.generate(ids, **options))


@torch.no_grad()
def test_pruning_adds_up_in_the_original_numbers() -> None:
    model, at_once = jolted(), jolted()
    at_once.load_state_dict(model.state_dict())
    ids = tokens(2, 8)
    model.prune_heads({0: [1]})
    model.prune_heads({0: [1, 3], 1: [2]})
    model.model.prune_heads({1: [0]})
    at_once.prune_heads({0: [3, 1], 1: [2, 0]})
    assert model.config.pruned_heads == at_once.config.pruned_heads == ((1, 3), (0, 2))
    assert torch.equal(model(ids).logits, at_once(ids).logits)


def test_gradients_are_those_of_what_remains() -> None:
    model = jolted()
    reference = zeroed(model, PRUNED["every layer another way"])
    model.prune_heads(PRUNED["every layer another way"])
    ids = tokens(2, 10)
    for each in (model, reference):
        each(ids, labels=ids).loss.backward()
    for layer, (query_heads, _) in enumerate(attn.self_attn.heads for attn in model.model.layers):
        channels = torch.cat([torch.arange(head * 8, head * 8 + 8) for head in query_heads])
        ours, theirs = (each.model.layers[layer].self_attn for each in (model, reference))
        assert relative_error(ours.q_proj.weight.grad, theirs.q_proj.weight.grad[channels]) < 1e-5
        assert relative_error(ours.o_proj.weight.grad, theirs.o_proj.weight.grad[:, channels]) < 1e-5


def test_frozen_stays_frozen() -> None:
    model = jolted().requires_grad_(False)
    model.prune_heads({0: [1]})
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("heads", "complaint"),
    [
        ({2: [0]}, "heads_to_prune names layer 2: the layers are 0 to 1"),
        ({-1: [0]}, "heads_to_prune names layer -1: the layers are 0 to 1"),
        ({0: [4]}, r"pruned_heads\.0 \[4\] must rise, each head from 0 to num_attention_heads - 1 = 3"),
        ({1: [0, 1, 2, 3]}, r"pruned_heads\.1 \[0, 1, 2, 3\] leaves no head"),
    ],
)
def test_what_cannot_be_pruned_changes_nothing(heads: dict[int, list[int]], complaint: str) -> None:
    model = jolted()
    ids = tokens(1, 5)
    before = model(ids).logits
    with pytest.raises(ValueError, match=f"^{complaint}"):
        model.prune_heads(heads)
    assert model.config.pruned_heads is None
    assert torch.equal(model(ids).logits, before)


def test_adapters_must_be_merged_first() -> None:
    model = jolted()
    model.model.layers[1].self_attn.q_proj = torch.nn.Sequential(model.model.layers[1].self_attn.q_proj)
    with pytest.raises(ValueError, match=r"^prune_heads meets a Sequential: merge adapters"):
        model.prune_heads({0: [1], 1: [1]})
    assert model.model.layers[0].self_attn.q_proj.out_features == 32

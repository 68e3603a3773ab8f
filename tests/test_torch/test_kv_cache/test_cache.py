"""The pruned cache behind our model: what it never changes, and what it never drops."""

import copy
import importlib
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from stellarbyte.errors import UserError
from stellarbyte_torch import configuration_stellarbyte, modeling_stellarbyte
from stellarbyte_torch.kv_cache import PrunedCache
from stellarbyte_torch.modeling_stellarbyte import CACHE
from test_torch.tiny import POSITIONS, SWITCHES, TINY, tiny_model, tokens

POLICIES = ("window", "heavy", "snap", "expected", "norm")
every_policy = pytest.mark.parametrize("policy", POLICIES)


def left_padded(length: int, padding: int) -> tuple[Tensor, Tensor]:
    """Two rows and their mask; the first begins with padding."""
    ids, mask = tokens(2, length), torch.ones(2, length, dtype=torch.long)
    ids[0, :padding], mask[0, :padding] = 2, 0
    return ids, mask


@torch.no_grad()
def read(model: Any, cache: Any, ids: Tensor, prompt: int, mask: Tensor | None = None, start: int = 0) -> Tensor:
    """The logits of all tokens: the prompt comes at once, then one token after another. start: the first position."""
    if mask is None:
        mask = torch.ones_like(ids)
    positions = start + (mask.cumsum(dim=1) - 1).clamp(min=0)
    ends = [0, *range(prompt, ids.shape[1] + 1)]
    logits = [
        model(ids[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b], past_key_values=cache).logits
        for a, b in pairwise(ends)
    ]
    return torch.cat(logits, dim=1)


def kept(cache: PrunedCache) -> list[Tensor]:
    """The numbers of the tokens that each layer holds, [B, K, C]."""
    return [layer.index_BKC for layer in cache.layers]


@pytest.mark.parametrize(
    ("attention", "policy", "switches"),
    [
        ("sdpa", "snap", POSITIONS["xpos_learnable"]),
        ("eager", "heavy", POSITIONS["rope"]),
        ("sdpa", "expected", SWITCHES["window_1"]),
        ("sdpa", "snap", {"sliding_window": 5}),
        ("eager", "norm", SWITCHES["everything"]),
        ("sdpa", "heavy", SWITCHES["pruned"]),
        ("sdpa", "expected", SWITCHES["yarn"]),
    ],
    ids=str,
)
def test_a_budget_for_all_tokens_changes_no_bit(attention: str, policy: str, switches: dict[str, Any]) -> None:
    model, (ids, mask) = tiny_model(attention, **switches), left_padded(20, 4)
    expected = read(model, DynamicCache(config=model.config), ids, 14, mask)  # as `generate` makes it
    actual = read(model, PrunedCache(model, 20, policy), ids, 14, mask)
    assert torch.equal(actual[mask.bool()], expected[mask.bool()])


@every_policy
def test_rows_do_not_depend_on_one_another(policy: str) -> None:
    # The slots of the second row are full first, so that it is pruned while the first one holds more keys.
    model, (ids, mask) = tiny_model(), left_padded(50, 13)
    both, first, second = (PrunedCache(model, 34, policy) for _ in range(3))
    logits = read(model, both, ids, 44, mask)[:, -1:]
    alone = [read(model, first, ids[:1, 13:], 31)[:, -1:], read(model, second, ids[1:], 44)[:, -1:]]
    torch.testing.assert_close(logits, torch.cat(alone), rtol=0, atol=1e-5 * logits.abs().max().item())
    for held, *others in zip(*map(kept, (both, first, second)), strict=True):
        for row, (of_row, padding) in enumerate(zip(others, (13, 0), strict=True)):
            numbers = [[number - padding for number in head if number >= 0] for head in held[row].tolist()]
            assert numbers == [[number for number in head if number >= 0] for head in of_row[0].tolist()]


@every_policy
@pytest.mark.parametrize("position", ["xpos", "rope", "none"])
def test_shifted_positions_keep_the_same_tokens(position: str, policy: str) -> None:
    model, ids = tiny_model(position_embedding=position, xpos_scale_base=512.0), tokens(1, 30)
    here, there = PrunedCache(model, 18, policy), PrunedCache(model, 18, policy)
    read(model, here, ids, 26)
    read(model, there, ids, 26, start=10_000)
    assert all(map(torch.equal, kept(here), kept(there)))


@every_policy
def test_what_a_window_still_sees_is_not_dropped(policy: str) -> None:
    model, (ids, mask) = tiny_model(sliding_window=12), left_padded(50, 9)
    expected = read(model, DynamicCache(), ids, 30, mask)[mask.bool()]
    actual = read(model, PrunedCache(model, 16, policy), ids, 30, mask)[mask.bool()]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@every_policy
def test_sinks_and_the_newest_stay_and_memory_does_not_grow(policy: str) -> None:
    model = tiny_model(num_hidden_layers=1, max_position_embeddings=1024)
    cache, sizes = PrunedCache(model, 16, policy), set()
    with torch.no_grad():
        for number in range(32):
            model(tokens(1, 16, seed=number), past_key_values=cache)
            sizes.add(cache.nbytes)
    assert len(sizes) == 1
    assert cache.get_seq_length() == 512
    for held in kept(cache)[0][0].tolist():
        assert held == sorted(held)
        assert held[:4] == [0, 1, 2, 3]
        assert held[-2:] == [510, 511]


@every_policy
@torch.no_grad()
def test_taking_a_calls_last_tokens_back_leaves_no_trace(policy: str) -> None:
    model, ids = tiny_model(), tokens(1, 40)
    taken_back, never_read = PrunedCache(model, 18, policy), PrunedCache(model, 18, policy)
    for cache, count in ((taken_back, 9), (never_read, 5)):
        model(ids[:, :30], past_key_values=cache)
        cache.activate_past_recording()
        model(ids[:, 30 : 30 + count], past_key_values=cache)
        cache.crop(5 - count)
    assert taken_back.get_seq_length() == never_read.get_seq_length() == 35
    assert all(map(torch.equal, kept(taken_back), kept(never_read)))
    again = [model(ids[:, 35:36], past_key_values=cache).logits for cache in (taken_back, never_read)]
    torch.testing.assert_close(*again)


@pytest.mark.parametrize("policy", ["heavy", "snap", "expected"])
@torch.no_grad()
def test_queries_that_wait_count_as_if_they_did_not(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through prunings, calls of several tokens at new positions, tokens that are taken back, and rows that change."""
    model, ids, caches = tiny_model(), tokens(2, 80), []
    for at_once in (1, 64):
        monkeypatch.setattr("stellarbyte_torch.kv_cache.layer.AT_ONCE", at_once)
        cache, start = PrunedCache(model, 48, policy), 0
        for size in (40, *[1] * 20, -2, 1, 0, 1, 5, *[1] * 4):
            if size < 0:
                cache.crop(size)
            if size == 0:
                cache.reorder_cache(torch.tensor([1, 0]))
            if size <= 0:
                continue
            positions = torch.arange(start, start + size)[None] + (100 if size == 5 else 0)
            model(ids[:, start : start + size], position_ids=positions, past_key_values=cache)
            start += size
        caches.append(cache)
    first, other = (cache.layers[0] for cache in caches)
    assert first.observed.waiting == 0 < other.observed.waiting
    other.add_up()
    assert all(map(torch.equal, kept(caches[0]), kept(caches[1])))
    torch.testing.assert_close(first.slots.attention_BKC, other.slots.attention_BKC)
    torch.testing.assert_close(first.observed.arrays, other.observed.arrays, rtol=1e-5, atol=1e-5)


def test_it_generates_with_beams_samples_and_an_assistant() -> None:
    model, draft, ids = tiny_model(), tiny_model(num_hidden_layers=1), tokens(1, 20)
    common = {"max_new_tokens": 8, "eos_token_id": None, "pad_token_id": 2}
    greedy = {**common, "do_sample": False}
    for ways in ({"num_beams": 3}, {"assistant_model": draft}, {"prompt_lookup_num_tokens": 3}):
        expected = model.generate(ids, **greedy, **ways)
        for budget in (32, 16):
            cache = PrunedCache(model, budget, "heavy")
            answer = model.generate(ids, **{CACHE: cache}, **greedy, **ways)
            assert answer.shape == expected.shape
            assert budget == 16 or torch.equal(answer, expected)
            assert max(layer.slots.used for layer in cache.layers) <= budget
    several = {"do_sample": True, "num_return_sequences": 2, CACHE: PrunedCache(model, 16, "expected")}
    assert model.generate(tokens(2, 20), **common, **several).shape == (4, 28)


@torch.no_grad()
def test_rows_are_repeated_and_chosen_and_forgotten() -> None:
    model, ids = tiny_model(), tokens(2, 22)
    cache = PrunedCache(model, 18, "snap")
    model(ids, past_key_values=cache)
    before = kept(cache)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    assert all(torch.equal(held, old[[1, 0]]) for held, old in zip(kept(cache), before, strict=True))
    cache.reset()
    assert cache.get_seq_length() == cache.nbytes == 0
    model(ids[:1], past_key_values=cache)
    assert all(torch.equal(held, old[:1]) for held, old in zip(kept(cache), before, strict=True))


def test_a_pyramid_gives_early_layers_more() -> None:
    model = tiny_model(num_hidden_layers=3)
    cache = PrunedCache(model, 32, "window", "pyramid")
    read(model, cache, tokens(1, 60), 60)
    sizes = [layer.slots.size for layer in cache.layers]
    assert sizes == [48, 32, 16]
    assert [layer.slots.keys.shape[2] for layer in cache.layers] == sizes


def test_the_code_that_an_export_carries_lets_it_attend_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "carried").mkdir()
    for module in (configuration_stellarbyte, modeling_stellarbyte):
        shutil.copy(str(module.__file__), tmp_path / "carried")
    monkeypatch.syspath_prepend(tmp_path)
    carried = importlib.import_module("carried.modeling_stellarbyte")
    model, ids = tiny_model(), tokens(1, 30)
    other = carried.ByteForCausalLM(carried.ByteConfig(**TINY)).eval()
    other.load_state_dict(model.state_dict())
    expected = read(model, PrunedCache(model, 18), ids, 25)
    assert torch.equal(read(other, PrunedCache(other, 18), ids, 25), expected)


def test_mistakes_get_a_sentence() -> None:
    model, ids = tiny_model(), tokens(1, 20)
    with pytest.raises(UserError, match=r"h2o.*window, heavy"):
        PrunedCache(model, 32, "h2o")
    with pytest.raises(UserError, match=r"15 slots is too small .* at least 16"):
        PrunedCache(model, 15)
    for budget in ("25%", 16.5):
        with pytest.raises(UserError, match=r"is no number of slots: give a whole one, from 16"):
            PrunedCache(model, budget)
    with pytest.raises(ValueError, match=r"crop\(3\) is above 0"):
        PrunedCache(model, 16).crop(3)
    with pytest.raises(UserError, match=r"\[1, 1, 20, 19\].*\[B, 1, 20, 20\]"):
        model(ids, attention_mask=torch.ones(1, 1, 20, 19, dtype=torch.bool), past_key_values=PrunedCache(model, 16))
    flexible = tiny_model()
    flexible.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match=r"flex_attention follows no mask .* sdpa or eager"):
        flexible.model.layers[0].self_attn(torch.ones(1, 2, 32), None, None, PrunedCache(model, 16))


@torch.no_grad()
def test_a_copy_goes_on_alone() -> None:
    model, ids = tiny_model(), tokens(1, 30)
    cache = PrunedCache(model, 16)
    model(ids, past_key_values=cache)
    other = copy.deepcopy(cache)
    ours, theirs = (model(ids[:, :1], past_key_values=each).logits for each in (cache, other))
    assert torch.equal(ours, theirs)


@torch.no_grad()
def test_taking_back_more_than_all_heads_hold_leaves_each_head_what_it_has() -> None:
    model, ids = tiny_model(), tokens(1, 40)
    cache = PrunedCache(model, 24, "snap")
    model(ids, past_key_values=cache)
    before = [[{n for n in head if 0 <= n < 28} for head in held[0].tolist()] for held in kept(cache)]
    assert any(len(one) != len(other) for one, other in before), "heads differ in what they hold of the first 28"
    cache.crop(-12)
    for number in range(28, 31):
        logits = model(ids[:, number : number + 1], past_key_values=cache).logits
        for held, heads in zip(kept(cache), before, strict=True):
            for head, numbers in zip(held[0].tolist(), heads, strict=True):
                assert {n for n in head if n >= 0} == numbers | set(range(28, number + 1))
    for layer in cache.layers:  # what stands in empty slots is read by nobody
        empty = layer.slots.index_BKC < 0
        layer.slots.keys[empty], layer.slots.values[empty] = 1e4, 1e4
    cache.crop(-1)
    torch.testing.assert_close(model(ids[:, 30:31], past_key_values=cache).logits, logits)
